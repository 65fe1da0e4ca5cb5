"""The tasks in memory: loaded when they are asked for, the least recently used go when there is no room.

Only the thread that owns the model calls this.
"""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Collection

from dts.adapter import Adapter, AdapterError
from dts.nn import DTSModel
from dts.serve.catalogue import Catalogue
from dts.serve.refused import NoRoom, Refused

log = logging.getLogger("dts.serve")


class Residents:
    """memory: bytes of adapters, as they are on disk, that may be loaded at once; None: no bound.

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
        self.model, self.catalogue, self.memory = model, catalogue, memory
        self.pinned = set(pinned)
        self.on_load = on_load
        self.loaded: OrderedDict[str, int] = OrderedDict()  # name -> bytes, the least recently used first

    @property
    def nbytes(self) -> int:
        return sum(list(self.loaded.values()))

    def ensure(self, names: Collection[str], keep: Collection[str] = ()) -> None:
        """Have these tasks loaded together with those of ``keep``.

        Raises Refused (404 unknown, 409 damaged, 400 another base or no fit), NoRoom where memory does not allow it.
        """
        for name in names:
            if name in self.loaded:
                self.loaded.move_to_end(name)
            else:
                self.load(name, {*keep, *names})

    def load(self, name: str, keep: Collection[str] = ()) -> None:
        """Load, or load again what is on disk now."""
        begun = time.monotonic()
        about = self.catalogue.get(name)
        assert about.folder is not None
        self._make_room(name, about.nbytes, keep)
        try:
            adapter = Adapter.load(about.folder)
        except (AdapterError, OSError) as error:
            raise self.catalogue.damaged(name, error) from None
        try:
            self.model.load_task(name, adapter)
        except ValueError as error:
            raise Refused(f"the adapter {name!r} cannot be loaded: {error}", 400, "does_not_fit", "model") from None
        self.loaded[name] = adapter.nbytes
        self.loaded.move_to_end(name)
        seconds = time.monotonic() - begun
        self.on_load(name, seconds)
        log.info("loaded %s: %d bytes in %.3f s", name, adapter.nbytes, seconds)

    def drop(self, name: str) -> bool:
        """Take a task out of memory; False where it was not in it."""
        self.pinned.discard(name)
        if self.loaded.pop(name, None) is None:
            return False
        self.model.delete_task(name)
        return True

    def _make_room(self, name: str, needed: int, keep: Collection[str]) -> None:
        if self.memory is None:
            return
        others = {other: size for other, size in self.loaded.items() if other != name}
        stay = {other for other in others if other in self.pinned or other in keep}
        least = needed + sum(others[other] for other in stay)
        if least > self.memory:
            raise NoRoom(
                f"the adapter {name!r} ({needed} bytes) does not fit beside "
                f"{sorted(stay) or 'nothing'}: that takes {least} bytes, and {self.memory} are allowed"
            )
        free = self.memory - sum(others.values())
        for other in [one for one in others if one not in stay]:
            if needed <= free:
                break
            free += others[other]
            del self.loaded[other]
            self.model.delete_task(other)
            log.info("let go of %s, %d bytes, to make room for %s", other, others[other], name)
