"""Ctrl-C goes to every process of a terminal: of helpers that end by it only their starter has a word to say."""

import multiprocessing.resource_tracker
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def starting() -> Iterator[None]:
    """Python processes that are started meanwhile hear of Ctrl-C once they call `end_quietly`: in imports it would
    be a traceback.  What comes to this process meanwhile is raised at the end."""
    here = hasattr(signal, "pthread_sigmask") and threading.current_thread() is threading.main_thread()
    left = signal.SIG_IGN, None  # those started inherit it; or the handler is not Python's
    if not here or signal.getsignal(signal.SIGINT) in left:
        yield
        return
    multiprocessing.resource_tracker.ensure_running()  # which, where it starts within, unblocks the signal
    came: list[int] = []
    handler = signal.signal(signal.SIGINT, lambda number, frame: came.append(number))  # other threads do not block it
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        signal.signal(signal.SIGINT, handler)
        if came:
            signal.raise_signal(signal.SIGINT)


def end_quietly() -> None:
    """From now on Ctrl-C ends this process, also one that came before, without a word; where it is ignored, it is."""
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
