"""The tasks in memory: loaded when they are asked for, the least recently used go when there is no room.

Only the thread that owns the model calls this.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager

from dts.nn import DTSModel
from dts.nn import residents as nn_residents
from dts.nn.base import OtherBase
from dts.nn.sizes import bytes_of
from dts.serve.catalogue import Catalogue
from dts.serve.refused import NoRoom, Refused

log = logging.getLogger("dts.serve")


@contextmanager
def _told() -> Iterator[None]:
    """What memory does not allow is a client's error."""
    try:
        yield
    except nn_residents.NoRoom as error:
        raise NoRoom(str(error)) from None


class Residents(nn_residents.Residents):
    """`dts.nn.residents.Residents` of a catalogue's adapters, whose errors are a client's.

    memory: bytes that tasks may take in memory at once, as `dts plan` counts them; None: no bound.
    pinned: tasks that never go;  on_load: called with the name and the seconds of each load.
    """

    def __init__(
        self,
        model: DTSModel,
        catalogue: Catalogue,
        memory: int | None = None,
        pinned: Collection[str] = (),
        on_load: Callable[[str, float], None] = lambda name, seconds: None,
    ):
        super().__init__(memory, pinned)
        self.model, self.catalogue, self.on_load = model, catalogue, on_load

    @property
    def memory(self) -> int | None:
        return self.limit

    def have(self, names: Collection[str], keep: Collection[str] = ()) -> None:
        """Have these tasks loaded together with those of ``keep`` that are.

        Raises Refused (404 unknown, 409 damaged, 400 another base or no fit), NoRoom where memory does not allow it.
        """
        with _told():
            self.ensure(names, self, keep)

    def fit(self, names: Collection[str]) -> None:
        """Raises NoRoom where memory allows these at no time, whatever runs."""
        with _told():
            self.check(names, self)

    def load(self, name: str, keep: Collection[str] = ()) -> None:
        """Load, or load again what is on disk now."""
        with _told():
            self.reload(name, self, keep)

    def drop(self, name: str) -> bool:
        """Take a task out of memory; False where it was not in it."""
        if not self.forget(name):
            return False
        self.model.delete_task(name)
        self.catalogue.release(name)
        return True

    # ---- `dts.nn.residents.Store` ------------------------------------------------------------------------------

    def size_of(self, name: str) -> int:
        return self.catalogue.size_of(name)

    def bring(self, name: str) -> int:
        begun = time.monotonic()
        known, expected = self.catalogue.on_disk(name), self.catalogue.size_of(name)
        adapter = self.catalogue.load(name)
        try:
            self.model.load_task(name, adapter)
        except OtherBase as error:
            raise self.catalogue.other_base(name, error.why) from None
        except ValueError as error:
            raise Refused(f"the adapter {name!r} cannot be loaded: {error}", 400, "does_not_fit", "model") from None
        self.model.forget_adapter(name)
        self.catalogue.hold(name, adapter)
        same = known.config.get("sha256") and adapter.config.get("sha256") == known.config["sha256"]
        seconds, taken = time.monotonic() - begun, expected if same else bytes_of(adapter)
        self.on_load(name, seconds)
        log.info("loaded %s: %d bytes in %.3f s", name, taken, seconds)
        return taken

    def let_go(self, name: str) -> None:
        self.model.delete_task(name)
        self.catalogue.release(name)
        log.info("let go of %s to make room", name)
