"""A server process: from options to its end by a signal, with every answer that was promised."""

from __future__ import annotations

import asyncio
import gc
import logging
import socket
import warnings
from collections.abc import Callable
from types import FrameType

import uvicorn

from dts.serve.http.app import application
from dts.serve.http.guard import Guard
from dts.serve.http.open_files import room
from dts.serve.http.patience import patient
from dts.serve.metrics import Metrics
from dts.serve.options import Options, keys_of, problems
from dts.serve.signals import HANGUP, handled
from dts.serve.start import Served, serve

log = logging.getLogger("dts.serve")
GRACE = 1  # seconds after the last answer for its last bytes


class Server(uvicorn.Server):
    """Ends well by a signal: the door is closed, answers may end for ``drain`` seconds. The second one breaks them off.

    uvicorn's own would raise the signal again afterwards, so that a server that lost nothing looked like one killed,
    and its second signal breaks connections off without a word.
    """

    should_exit: bool
    force_exit: bool
    signals = 0
    ready: Callable[[], None] = staticmethod(lambda: None)
    stopping: Callable[[], None] = staticmethod(lambda: None)
    drain = 30.0
    too_late: Callable[[], int] = staticmethod(lambda: 0)  # tells all who wait that it is; how many those are
    broken = 0  # requests that were not answered
    _loop: asyncio.AbstractEventLoop | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        try:
            await super().startup(sockets)
        except SystemExit:
            raise ValueError(
                f"the server cannot start: {self.config.host} port {self.config.port} was taken since"
            ) from None
        if not self.should_exit:
            self.ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        later = asyncio.get_running_loop().call_later
        timers = [later(self.drain, self.tell), later(self.drain + GRACE, self.cut)]
        try:
            await super().shutdown(sockets)
        finally:
            for timer in timers:
                timer.cancel()
        if left := self.server_state.tasks:
            await asyncio.wait(left, timeout=GRACE)  # they hear that their client has gone

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.should_exit = True
        self.signals += 1
        self.stopping()
        if self.signals > 1 and self._loop is not None:
            self._loop.call_soon_threadsafe(self.hurry if self.signals == 2 else self.cut)

    def tell(self) -> None:
        self.broken += self.too_late()

    def hurry(self) -> None:
        """There is a moment yet for last words."""
        self.tell()
        asyncio.get_running_loop().call_later(GRACE, self.cut)

    def cut(self) -> None:
        """Those that last words did not reach, as they read nothing or what they wait for does not end."""
        if self.force_exit:
            return
        self.force_exit = True
        self.broken += len(self.server_state.tasks)
        for connection in list(self.server_state.connections):
            if connection.transport is not None:
                connection.transport.abort()


def prepared(options: Options) -> tuple[Served, Metrics, Guard]:
    """An engine that works, its figures, and the application that asks it."""
    # whether a request reaches all layers depends on its route: embeddings do not reach a head
    warnings.filterwarnings("ignore", "tasks change .* which the first call did not use", UserWarning)
    metrics = Metrics()
    served = serve(options, metrics)
    app = application(served, metrics, keys_of(options.api_keys), keys_of(options.admin_keys))
    served.engine.start()
    return served, metrics, app


def run(options: Options, ready: Callable[[list[str], int | None], None] = lambda tasks, memory: None) -> int:
    """Serves until SIGTERM, SIGINT or SIGHUP; how many requests were broken off, as they took longer than
    ``options.drain`` or a second signal came.

    Raises ValueError with everything that keeps it from starting.  ready: called with the names of the
    tasks, and the bytes that they may take in memory at once, when the server listens.
    """
    if wrong := problems(options):
        raise ValueError("the server cannot start:\n  " + "\n  ".join(wrong))
    served, metrics, app = prepared(options)
    gc.collect()
    gc.freeze()  # a base and its libraries are half a million objects: to go through them holds every row up for 0.2 s
    files = room()
    config = uvicorn.Config(
        app,
        options.host,
        options.port,
        http=patient(options.limits.seconds, metrics.refused, files.connections),
        backlog=files.backlog,
        ws="none",  # no route is one
        log_level="warning",
        access_log=False,  # the guard writes one
        server_header=False,
    )
    server = Server(config)
    server.ready = lambda: ready(served.catalogue.names(), served.options.memory)
    server.drain, server.too_late = options.drain, served.engine.give_up
    server.stopping = lambda: setattr(served.engine, "draining", True)
    try:
        with handled(HANGUP, server.handle_exit):
            server.run()
    finally:
        served.engine.drain(GRACE)
        gc.unfreeze()  # libraries count what is left at the end as lost
    return server.broken
