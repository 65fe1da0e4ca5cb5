"""Modules above the layers that make something of what tasks change, once, and keep it for every call.

A layer forgets what it made of its own weights (`dts.nn.layers.kept`).  What another module keeps, of a child's weight
that it read or of an answer of its children, lies where no task can change it: after the first call with a task it is
looked whether there is something new, and tried whether it follows the tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from torch import nn

from dts.checkpoint.errors import first
from dts.nn.layers import Layer
from dts.nn.layers.kept import (
    alone,
    as_they_were,
    copied,
    fields_of,
    holds_numbers,
    is_container,
    same,
    snapshot,
    written,
)
from dts.nn.routing import Mixture
from dts.sites import walked

Place = tuple[str, nn.Module, dict[str, Any], str]  # the module's name, the module, one of its dicts, a key of that


class Before:
    """What modules had before a call."""

    def __init__(self, model: nn.Module):
        self._model = model
        self._had = {id(module): _kept(module) for _, module in walked(model) if not isinstance(module, Layer)}
        self._containers = {id(m): copied(vars(m)) for _, m in walked(model) if id(m) in self._had}

    def refuse(
        self,
        run: Callable[..., Any],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        mixtures: Sequence[Mixture],
        uniform: Callable[[Mixture], AbstractContextManager[None]],
    ) -> None:
        """Raises RuntimeError where something that the call left does not follow the tasks, and takes it away again.

        run, args, kwargs: the call;  mixtures: of the loaded tasks;  uniform: lets calls within be of one.
        """
        places = self._new()
        if not places:
            return
        there = [snapshot(store[key]) for _, _, store, key in places]

        def again(mixture: Mixture, anew: bool) -> list[Any]:
            if anew:
                self._reset(places)
            with alone((args, kwargs)) as (own_args, own_kwargs), uniform(mixture):
                run(*own_args, **own_kwargs)
            return [snapshot(store.get(key)) for _, _, store, key in places]

        wrong: list[str] = []
        try:
            with as_they_were(self._model.modules()):
                for mixture in mixtures:
                    renewed = again(mixture, False)
                    stays = [same(now, was) for now, was in zip(renewed, there)]
                    places = [place for place, stay in zip(places, stays) if stay]
                    there = [value for value, stay in zip(there, stays) if stay]
                one, *others = (again(mixture, True) for mixture in mixtures) if places else [[]]
            for place, values in zip(places, zip(one, *others)):
                if not all(same(value, values[0]) for value in values):
                    wrong.append(f"{place[0]}.{place[3]}".lstrip("."))
        except Exception:  # a call that cannot be made again, or is not for all of these tasks
            return
        if wrong:
            self._reset(places)
            raise RuntimeError(
                f"{first(sorted(wrong), 8)}: made of what tasks change, once, in the first call, and kept for every "
                "later one, whatever its task: let the forward make it each time, or take a model of one task, "
                "merge_and_unload(task)"
            )

    def _new(self) -> list[Place]:
        """Where there is something of numbers that was not there."""
        found: list[Place] = []
        for name, module in walked(self._model):
            had = self._had.get(id(module))
            if had is None:
                continue
            stores: tuple[dict[str, Any], ...] = vars(module), module._buffers
            for store in stores:
                for key in fields_of(store):
                    grown = is_container(store[key]) and len(store[key]) > had.get(key, 0)
                    if (key not in had or grown) and holds_numbers(store[key]):
                        found.append((name, module, store, key))
        return found

    def _reset(self, places: Sequence[Place]) -> None:
        for _, module, store, key in places:
            before = self._containers[id(module)].get(key)
            if before is not None and is_container(store.get(key)):
                written(store[key], before)
            elif key in self._had_none(module):
                store[key] = None
            else:
                store.pop(key, None)

    def _had_none(self, module: nn.Module) -> set[str]:
        return self._had[id(module)].get("", set())


def _kept(module: nn.Module) -> dict[str, Any]:
    """Fields and buffers that are something, with how many things each holds;  under "" the names of the others."""
    own = {**fields_of(vars(module)), **module._buffers}
    sizes = {key: len(one) if is_container(one) else 0 for key, one in own.items() if one is not None}
    return {**sizes, "": {key for key, one in own.items() if one is None}}
