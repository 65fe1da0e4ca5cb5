"""Signals outside of the time in which the server has a door to close: while it loads, and when it has ended."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

log = logging.getLogger("dts.serve")
# a terminal that closes, where there are such; Ctrl-C is Python's
HANGUP = [getattr(signal, name) for name in ("SIGHUP",) if hasattr(signal, name)]
Handler = Callable[[int, FrameType | None], object]


@contextmanager
def ending() -> Iterator[None]:
    """Until the server has handlers of its own SIGTERM and SIGHUP end the process with 0: nothing was taken in that
    could be lost.  Python would leave them to the system, which lets the first process of a container go on."""
    stopped = False

    def end(number: int, frame: FrameType | None) -> None:
        nonlocal stopped
        if stopped:  # it does already
            return
        stopped = True
        log.warning("stopped by %s before the server was ready", signal.Signals(number).name)
        raise SystemExit(0)

    with handled([signal.SIGTERM, *HANGUP], end):
        yield


@contextmanager
def handled(signals: list[signal.Signals], handler: Handler) -> Iterator[None]:
    """Signals that are not ignored (``nohup``) are this handler's meanwhile; in another thread than the first nobody
    may say so."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {one: signal.getsignal(one) for one in signals}
    ours = [one for one, was in before.items() if was not in (signal.SIG_IGN, None)]  # None: not Python's
    for one in ours:
        signal.signal(one, handler)
    try:
        yield
    finally:
        for one in ours:
            signal.signal(one, before[one])
