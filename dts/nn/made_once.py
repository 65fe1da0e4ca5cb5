"""Modules that make something of what tasks change, once, and keep it for every call.

A layer forgets what it made of its own weights (`dts.nn.layers.kept`).  What else is kept, of a child's weight that was
read or of an answer of children, lies where no task can change it: in a field, in a buffer that held other numbers
before, in a helper object.  After the first call with a task it is looked whether there is something new, and tried
whether it follows the tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from torch import nn

from dts.checkpoint.errors import first
from dts.nn.layers.hook_state import hooks_as_they_were
from dts.nn.layers.kept import alone, as_they_were
from dts.nn.layers.kept_values import holds_numbers, same
from dts.nn.layers.module_state import ModuleState, Place
from dts.nn.routing import Mixture
from dts.sites import walked


class Before:
    """What modules had before a call."""

    def __init__(self, model: nn.Module):
        self._model = model
        self._state = ModuleState(walked(model), numbers=True)

    def refuse(
        self,
        run: Callable[..., Any],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        mixtures: Sequence[Mixture],
        uniform: Callable[[Mixture], AbstractContextManager[None]],
    ) -> None:
        """Raises RuntimeError where something that the call left does not follow the tasks; all is then as it was.

        run, args, kwargs: the call;  mixtures: of the loaded tasks;  uniform: lets calls within be of one.
        """
        places = [place for place in self._state.changed() if holds_numbers(place.value)]
        if not places:
            return

        def again(mixture: Mixture) -> None:
            with alone((args, kwargs)) as (own_args, own_kwargs), uniform(mixture):
                run(*own_args, **own_kwargs)

        try:
            with hooks_as_they_were(self._model.modules()):
                wrong = self._made_once(places, again, mixtures)
        except Exception:  # a call that cannot be made again, or is not for all of these tasks
            return
        if wrong:
            self._state.put_back(numbers=True)
            raise RuntimeError(
                f"{first(sorted(wrong), 8)}: made of what tasks change, once, in the first call, and kept for every "
                "later one, whatever its task: let the forward make it each time, or take a model of one task, "
                "merge_and_unload(task).  What is to be made of first inputs, once and for all tasks, is made by a "
                "call before load_task()"
            )

    def _made_once(
        self, places: list[Place], again: Callable[[Mixture], None], mixtures: Sequence[Mixture]
    ) -> list[str]:
        """Labels of the places that stay in every call, and where each task would have made something else."""
        with as_they_were(self._model.modules()):
            there = [place.value for place in places]
            for mixture in mixtures:
                again(mixture)
                stay = [same(place.value, was, 0) for place, was in zip(places, there)]
                places = [place for place, stays in zip(places, stay) if stays]
                there = [was for was, stays in zip(there, stay) if stays]
                if not places:
                    return []
            made = []
            for mixture in mixtures:
                self._state.lend()
                again(mixture)
                made.append([place.value for place in places])
        return [place.label for place, *values in zip(places, *made) if not all(same(v, values[0]) for v in values)]
