"""Tasks of a `DTSModel` within a limit of memory: the others lie on disk until they are asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future

from dts.nn.adapters import refuse
from dts.nn.shelf import Shelf, Source
from dts.nn.wrapper.tasks import Tasks


class Limited(Tasks):
    """Keeps to the limit, and says beforehand what will be asked for."""

    def keep_within(
        self, limit: int | None, sources: Mapping[str, Source], loaded: Sequence[str] = (), pin: Sequence[str] = ()
    ) -> None:
        """Take tasks from their folders when they are asked for, at most ``limit`` bytes of them in memory.

        loaded: those that are loaded now, where there is room;  pin: those that stay.  The model must have no tasks.
        Raises ValueError that names every one of ``loaded`` that cannot be.
        """
        if self._loaded:
            raise ValueError(f"the model has tasks already: {list(self._loaded)}")
        shelf = self._shelf = Shelf(self, sources, limit, pin)
        wrong: dict[str, Exception] = {}
        for name in loaded:
            try:
                shelf.residents.ensure([name], shelf)
            except ValueError as error:
                wrong[name] = error
        if wrong:
            refuse(wrong)

    def prefetch(self, *tasks: str) -> Future[None]:
        """Load tasks in a thread, for calls that will ask for them; what came of it is the future's.

        Of a model with a limit of memory.  The thread waits for calls under way, and calls for it only as long as a
        task that was read and checked is put into the layers.
        """
        return self._limited("prefetch").prefetch(tasks)

    def pin_task(self, name: str) -> None:
        """Load a task that then stays in memory; of a model with a limit of it."""
        self._limited("pin_task").pin(name)

    def unpin_task(self, name: str) -> None:
        """Let a task go when its memory is needed."""
        shelf = self._limited("unpin_task")
        shelf.check([name])
        shelf.residents.unpin(name)

    def _limited(self, what: str) -> Shelf:
        if self._shelf is None:
            raise ValueError(f"{what} is of a model with a limit: DTSModel.from_pretrained(..., memory='1GiB')")
        return self._shelf

    def _may_load(self) -> None:
        if self._state._inside():
            raise RuntimeError(
                "tasks cannot be loaded or deleted within a call of the model: prefetch what it needs before"
            )
