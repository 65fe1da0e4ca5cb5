"""A thread that reads ahead of the work and one that writes behind it, so that a device does not wait for a disk."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from queue import Empty, Full, Queue
from threading import Event, Thread
from typing import Generic, TypeVar

Item = TypeVar("Item")
PATIENCE = 0.1  # seconds between two looks whether the other side is still there


class _End:
    """What a reader puts last: why it ended, if by an error."""

    def __init__(self, error: BaseException | None = None):
        self.error = error


@contextmanager
def ahead(items: Iterator[Item], depth: int = 1) -> Iterator[Iterator[Item]]:
    """The same items, drawn in a thread of its own up to ``depth`` ahead of who takes them.

    What drawing one raises is raised where it would have been taken.  At the end the thread is over.
    """
    line: Queue = Queue(depth)
    stopped = Event()

    def put(item) -> bool:
        while not stopped.is_set():
            try:
                line.put(item, timeout=PATIENCE)
                return True
            except Full:
                pass
        return False

    def draw() -> None:
        try:
            for item in items:
                if not put(item):
                    return
                del item  # and the memory it holds
            put(_End())
        except BaseException as error:  # noqa: BLE001  raised by who takes
            put(_End(error))

    def taken() -> Iterator[Item]:
        while not isinstance(item := line.get(), _End):
            yield item
            del item
        if item.error is not None:
            raise item.error

    reader = Thread(target=draw, name="dts-reader", daemon=True)
    reader.start()
    try:
        yield taken()
    finally:
        stopped.set()
        while reader.is_alive():
            try:
                line.get(timeout=PATIENCE)
            except Empty:
                pass
        reader.join()


class Behind(Generic[Item]):
    """Does jobs one after the other in a thread of its own, at most ``depth`` behind.

    An error of a job is raised by the next `do`, or at the end; no job after it is done.  What was given to it before
    the work around it failed is still done: finished work is kept.
    """

    def __init__(self, depth: int = 4):
        self._line: Queue = Queue(depth)
        self._error: BaseException | None = None
        self._thread = Thread(target=self._run, name="dts-writer", daemon=True)

    def do(self, job: Callable[[], object]) -> None:
        self._raise()
        self._line.put(job)

    def __enter__(self) -> "Behind":
        self._thread.start()
        return self

    def __exit__(self, kind, error, trace) -> None:
        self._line.put(None)
        self._thread.join()
        if error is None:
            self._raise()

    def _run(self) -> None:
        while (job := self._line.get()) is not None:
            if self._error is None:
                try:
                    job()
                except BaseException as error:  # noqa: BLE001  raised by who gave it
                    self._error = error
            del job

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error
