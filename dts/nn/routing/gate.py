"""Who may go on: calls of a model together, a load or a deletion alone."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Gate:
    """Many calls at once, or one change.  A copy or a pickle has locks of its own and nobody in it.

    lock: for what is read and written together;  turn: calls take turns by it once a part of the model was compiled.
    """

    def __init__(self) -> None:
        self.lock, self.turn = threading.Condition(), threading.RLock()
        self._calls: set[int] = set()  # threads
        self._waiting = 0
        self._changing: int | None = None  # the thread that loads or deletes

    def __reduce__(self) -> tuple[type[Gate], tuple[()]]:
        return Gate, ()

    @property
    def changing_here(self) -> bool:
        """Whether this thread is the one that loads or deletes."""
        return self._changing == threading.get_ident()

    @property
    def held_here(self) -> bool:
        """Whether this thread holds it."""
        return threading.get_ident() in self._calls

    @contextmanager
    def held(self) -> Iterator[None]:
        """Nothing is changed meanwhile.  Not for a thread that holds it (`held_here`), which goes on as it is: a change
        that waits for that thread, and for which that thread waits, would be for ever."""
        thread = threading.get_ident()
        with self.lock:
            while self._waiting or self._changing is not None:
                self.lock.wait()
            self._calls.add(thread)
        try:
            yield
        finally:
            with self.lock:
                self._calls.discard(thread)
                self.lock.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Waits for those that hold the gate; they wait for this."""
        with self.lock:
            self._waiting += 1
            try:
                while self._calls or self._changing is not None:
                    self.lock.wait()
                self._changing = threading.get_ident()
            finally:
                self._waiting -= 1
                self.lock.notify_all()
        try:
            yield
        finally:
            with self.lock:
                self._changing = None
                self.lock.notify_all()
