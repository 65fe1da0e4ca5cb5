"""Which task a `DTSModel` uses where a call names none, and which one its inputs tell."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Self

from torch import Tensor

from dts.adapter import Adapter
from dts.nn.parallel.agreed import agreed
from dts.nn.router import Choice, make_router
from dts.nn.selection import BASE, Selection, names_in, one_a_row
from dts.nn.wrapper.limited import Limited


class Choosing(Limited):
    """Sets tasks, for good or for a while, and chooses them by inputs."""

    def set_task(self, task: Selection) -> None:
        """Use one task, a mixture, or the base (BASE or None) for all rows of calls that begin from now on, in every
        thread.  Only tensors change."""
        self._choose_kept([task])

    def set_tasks(self, tasks: Sequence[Selection]) -> None:
        """Use one item a row of the batch, each as for `set_task`, in all calls that begin from now on.

        Their tensors stay in memory, one for each number of rows, so a CUDA graph that was captured follows what is set
        for as many rows as it has:

            model.set_tasks(names)
            model(**inputs)  # once before: finds where the rows are, compiles kernels
            with torch.cuda.graph(graph):
                out = model(**inputs)
            model.set_tasks(others)
            graph.replay()
        """
        rows = one_a_row(tasks)
        if not rows:
            raise ValueError(
                f"set_tasks takes a list with one item a row, not {tasks!r}; set_task(...) is for all rows"
            )
        self._choose_kept(rows)

    def _choose_kept(self, tasks: list[Selection]) -> None:
        """Choose tasks, which stay in memory until others are chosen."""
        with self._at_hand(tasks), nullcontext() if self._shelf is None else self._shelf.choosing:
            with self._state.held():
                self._choose(tasks)
            if self._shelf is not None:
                self._shelf.residents.keep({name for task in tasks for name in names_in(task)})

    @contextmanager
    def using_task(self, task: Selection) -> Iterator[Self]:
        """One task, mixture or the base for a while, in this thread: for code that calls the model and reads its
        config, and takes no ``tasks``.  What is chosen or deleted meanwhile counts afterwards."""
        with self._at_hand([task]):
            mixture = self._loaded.mixture(task)
            with self._state.using([mixture], self._missing([mixture])):
                yield self

    @contextmanager
    def using_tasks(self, tasks: Sequence[Selection]) -> Iterator[Self]:
        """As `using_task`, with one item a row of the batches that are given meanwhile."""
        with self._at_hand(tasks):
            mixtures = [self._loaded.mixture(task) for task in tasks]
            with self._state.using(mixtures, self._missing(mixtures)):
                yield self

    def disable_tasks(self) -> AbstractContextManager[Self]:
        """`using_task` of the base."""
        return self.using_task(BASE)

    def choose_tasks(self, batch: Mapping[str, Any], floor: float = 0.0) -> Choice:
        """The task of every row of the model's keyword inputs, by their energy in each adapter's subspace and by what
        the adapters know of their inputs (`dts route`); either is enough where all tasks have it.

        Costs a pass to the first block's inputs, and before the first answer one more on inputs of no meaning that are
        made from ``batch``.  floor: rows whose confidence is below it get None, the base.
        The answer stays in ``choice``.  Tasks loaded from bare entries cannot be chosen from.  Of a model that is split
        over processes the first one's choice holds in all of them.
        """
        self._refuse_on_disk('tasks="auto"')
        if not 0 <= floor <= 1:
            raise ValueError(f"floor is a probability, 0 to 1, not {floor!r}")
        inputs = _tensors(batch)
        if self._router is None:
            self._router = make_router(self, self._adapters(), inputs)
        self.choice = agreed(self._router.route(self, inputs, floor), self.model)
        return self.choice

    def calibrate_tasks(self, batch: Mapping[str, Any]) -> None:
        """Lets `choose_tasks` take unlabelled inputs of all loaded tasks, in about equal parts, as its zero.

        *Measured* on texts, 50 of each task (benchmarks/quality/MERGING.md): 95.5 % of rows right among six tasks, 91.5
        without; 87.6 and 80.0 among eight with near-duplicates.  To be done again after a task is loaded or deleted.
        batch: the model's keyword inputs.
        """
        self._refuse_on_disk("calibrate_tasks")
        self._router = make_router(self, self._adapters(), _tensors(batch), unlabelled=True)

    def _adapters(self) -> dict[str, Adapter | None]:
        return {name: loaded.adapter for name, loaded in self._loaded.items()}


def _tensors(batch: Mapping[str, Any]) -> dict[str, Tensor]:
    return {key: value for key, value in batch.items() if isinstance(value, Tensor)}
