"""What a model has loaded and how it runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TypedDict

from torch import Tensor

from dts.nn.layers import Layer, Owner
from dts.nn.loaded import LoadedTasks
from dts.nn.routing import Mixture
from dts.nn.rows import RowAxes
from dts.sites import raw


class Account(TypedDict):
    """What became of an adapter's entries: how many change something, and why each other one does not."""

    applied: int
    skipped: dict[str, str]


class Status(TypedDict):
    """`DTSModel.status`.

    nbytes: bytes of the tasks in memory;  current: the mixture of each row, or the one of all;  layers: by class;
    once_a_task: layers that run once a task;  grouped: what forces the whole model to, and why;
    unused: layers that tasks change and that the first call after the last load did not reach.
    exact: of tasks that keep every bit, how many parameters are held as what "changed" and how many "whole".
    on_disk: further tasks that are loaded when they are asked for, of a model with a limit of memory.
    """

    tasks: list[str]
    current: list[dict[str, float]]
    nbytes: int
    layers: dict[str, int]
    once_a_task: list[str]
    grouped: dict[str, str]
    unused: list[str]
    entries: dict[str, Account]
    exact: dict[str, dict[str, int]]
    on_disk: list[str]


def status(
    tasks: LoadedTasks,
    layers: Mapping[str, Layer],
    known: Iterable[RowAxes],
    mixtures: list[Mixture],
    unused: list[str],
    on_disk: list[str],
) -> Status:
    """known: where the rows are in calls so far;  mixtures: what is set."""
    grouped: dict[str, str] = {}
    for where in known:
        grouped |= where.unroutable
        if where.coupled:
            grouped["outputs"] = "rows of the batch meet in them"
    held = [t for layer in layers.values() for p in layer.dts.parameters.values() for t in p.held()]
    names = tasks.names
    return {
        "tasks": list(tasks),
        "current": [{names[s]: w for s, w in mixture.items()} for mixture in mixtures],
        "nbytes": sum({(t.data_ptr(), t.nbytes): t.nbytes for t in held}.values()),  # tied factors once
        "layers": dict(Counter(type(layer).__name__ for layer in layers.values())),
        "once_a_task": [name for name, layer in layers.items() if isinstance(layer, Owner)],
        "grouped": grouped,
        "unused": list(unused),
        "entries": {name: {"applied": t.applied, "skipped": t.skipped} for name, t in tasks.items()},
        "exact": _exact(layers, names),
        "on_disk": on_disk,
    }


def _exact(layers: Mapping[str, Layer], names: Mapping[int, str]) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {}
    for parameter in (p for layer in layers.values() for p in layer.dts.parameters.values()):
        for slot, own in parameter.exact.items():
            count = found.setdefault(names[slot], {"changed": 0, "whole": 0})
            count["whole" if own[0].index is None else "changed"] += 1
    return found


def not_reached(layers: Mapping[str, Layer], seen: set[str]) -> list[str]:
    """Layers that tasks change and a call did not use, neither by a forward nor by a read of a shared parameter."""
    seen = set(seen)
    acted = {
        id(tensor)
        for name, layer in layers.items()
        for parameter, tensor in _own(layer).items()
        if name in seen or f"{name}.{parameter}" in seen
    }
    return [name for name, layer in layers.items() if not {id(tensor) for tensor in _own(layer).values()} <= acted]


def _own(layer: Layer) -> dict[str, Tensor]:
    """The parameters that tasks change."""
    return {name: raw(layer, name) for name in layer.dts.parameters}
