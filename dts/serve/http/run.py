"""A server process: from options to its end by a signal, with every answer that was promised."""

from __future__ import annotations

import asyncio
import gc
import logging
import socket
import time
import warnings
from collections.abc import Callable
from types import FrameType

import uvicorn

from dts.serve.http.app import application
from dts.serve.http.guard import Guard
from dts.serve.http.patience import patient
from dts.serve.metrics import Metrics
from dts.serve.options import Options, keys_of, problems
from dts.serve.start import Served, serve

log = logging.getLogger("dts.serve")
GRACE = 1  # seconds after the last answer for its last bytes


class Server(uvicorn.Server):
    """Ends well by a signal: the door is closed, answers may end for ``drain`` seconds. The second one breaks them off.

    uvicorn's own would raise the signal again afterwards, so that a server that lost nothing looked like one killed.
    """

    should_exit: bool
    force_exit: bool
    signalled: float | None = None  # when, in seconds of time.monotonic
    ready: Callable[[], None] = staticmethod(lambda: None)
    stopping: Callable[[], None] = staticmethod(lambda: None)
    drain = 30.0
    too_late: Callable[[], None] = staticmethod(lambda: None)  # then: there is a moment yet for last words

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if not self.should_exit:
            self.ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        late = asyncio.get_running_loop().call_later(self.drain, lambda: self.too_late())
        try:
            await super().shutdown(sockets)
        finally:
            late.cancel()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.force_exit = self.should_exit
        self.should_exit = True
        self.signalled = self.signalled or time.monotonic()
        self.stopping()


def prepared(options: Options) -> tuple[Served, Metrics, Guard]:
    """An engine that works, its figures, and the application that asks it."""
    # whether a request reaches all layers depends on its route: embeddings do not reach a head
    warnings.filterwarnings("ignore", "tasks change .* which the first call did not use", UserWarning)
    metrics = Metrics()
    served = serve(options, metrics)
    app = application(served, metrics, keys_of(options.api_keys), keys_of(options.admin_keys))
    served.engine.start()
    return served, metrics, app


def run(options: Options, ready: Callable[[list[str]], None] = lambda tasks: None) -> bool:
    """Serves until SIGTERM or SIGINT; False where answers took longer than ``options.drain`` and were broken off.

    Raises ValueError with everything that keeps it from starting.  ready: called with the names of the
    tasks when the server listens.
    """
    if wrong := problems(options):
        raise ValueError("the server cannot start:\n  " + "\n  ".join(wrong))
    served, metrics, app = prepared(options)
    gc.collect()
    gc.freeze()  # a base and its libraries are half a million objects: to go through them holds every row up for 0.2 s
    config = uvicorn.Config(
        app,
        options.host,
        options.port,
        http=patient(options.limits.seconds, metrics.refused),
        ws="none",  # no route is one
        log_level="warning",
        access_log=False,  # the guard writes one
        server_header=False,
        timeout_graceful_shutdown=options.drain + GRACE,
    )
    server = Server(config)
    server.ready = lambda: ready(served.catalogue.names())
    server.drain, server.too_late = options.drain, served.engine.give_up
    server.stopping = lambda: setattr(served.engine, "draining", True)
    server.run()
    took = 0 if server.signalled is None else time.monotonic() - server.signalled
    return served.engine.drain(GRACE) and took <= options.drain and not server.force_exit
