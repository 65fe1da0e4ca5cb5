"""A replica: the whole of `dts serve` but for its socket."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

from ray import serve
from ray.serve.handle import DeploymentHandle
from starlette.types import Message, Scope

from dts.checkpoint.errors import first_line
from dts.ray.asgi import messages, whole
from dts.ray.ledger import Reply, State
from dts.ray.settings import Settings
from dts.serve.http.run import prepared

log = logging.getLogger("dts.serve")
SECONDS = 2.0  # between two looks at what administrators did
PATIENCE = 10.0  # seconds that the ledger may take to say it


class Engine:
    """`dts.serve`'s engine and its application, asked by calls.  ledger: of what administrators did."""

    def __init__(self, settings: dict[str, Any], ledger: DeploymentHandle):
        words = "%(asctime)s %(levelname)s %(name)s %(message)s"
        logging.basicConfig(level=logging.INFO, stream=sys.stderr, format=words)
        self.options = Settings.model_validate(settings).options()
        self.served, self.metrics, self.app = prepared(self.options)
        self.name = serve.get_replica_context().replica_id.unique_id
        self.version, self.ledger = 0, ledger
        self._agreed, self._told, self._stopped = threading.Lock(), threading.Event(), threading.Event()
        threading.Thread(target=self._follow, name="dts-ledger", daemon=True).start()
        self._told.wait(2 * PATIENCE)  # what it says is known before the first request

    async def answer(self, scope: Scope, body: bytes, tasks: tuple[str, ...]) -> AsyncIterator[Message]:
        """Of a route, as it comes.  tasks: what the router chose this replica by."""
        async for message in messages(self.app, scope, body):
            yield message

    async def command(self, scope: Scope, body: bytes) -> Reply:
        """An administrator's request, which all replicas are given."""
        before, version = self._state(), self.version
        answer = await whole(self.app, scope, body)
        return Reply(self.name, answer, version, before, self._state())

    async def figures(self) -> tuple[str, bytes]:
        """This replica's name, and its figures for Prometheus."""
        return self.name, await asyncio.to_thread(self.metrics.text)

    async def agree(self, version: int, state: State) -> None:
        """Take the state of the ledger where it is newer."""
        await asyncio.to_thread(self._agree, version, state)

    def record_routing_stats(self) -> dict[str, Any]:
        """What Ray tells the routers of this replica."""
        return {"tasks": list(self.served.engine.residents.loaded)}

    def check_health(self) -> None:
        """Ray replaces a replica whose engine has died."""
        if not self.served.engine.alive:
            raise RuntimeError("the engine has stopped")

    def __del__(self) -> None:
        """Ray has let requests end, for at most ``drain`` seconds; what there is now is broken off."""
        if hasattr(self, "served"):
            self._stopped.set()
            self.served.engine.drain(0)

    # ---- what administrators did ---------------------------------------------------------------------------------

    def _state(self) -> State:
        catalogue = self.served.catalogue
        given = {name: str(place) for name, place in catalogue.all_given().items()}
        return {"given": given, "pinned": sorted(self.served.engine.residents.pinned)}

    def _agree(self, version: int, state: State) -> None:
        """A name that meant another place is loaded from its own when it is next asked for."""
        engine, catalogue = self.served.engine, self.served.catalogue
        with self._agreed:
            if version <= self.version:
                return
            before, now = catalogue.all_given(), {name: Path(place) for name, place in state["given"].items()}
            for name in before.keys() | now.keys():
                if before.get(name) != now.get(name):
                    engine.do(partial(self._mean, name, now.get(name)), name)  # after the rows of it that run
            for name in set(engine.residents.pinned) - set(state["pinned"]):
                engine.residents.unpin(name)
            for name in state["pinned"]:
                engine.residents.pin(name)
            self.version = version

    def _mean(self, name: str, place: Path | None) -> None:
        """In the engine's thread."""
        self.served.catalogue.restore(name, place)
        self.served.engine.residents.drop(name)

    def _learn(self) -> None:
        try:
            version, state = self.ledger.sync.remote(self.version, self._state()).result(timeout_s=PATIENCE)
            self._agree(version, state)
        except Exception as error:  # it is not there now, and this replica answers without it
            log.warning("what administrators did is not known now: %s", first_line(error))

    def _follow(self) -> None:
        while not self._stopped.is_set():
            self._learn()
            self._told.set()
            self._stopped.wait(SECONDS)
