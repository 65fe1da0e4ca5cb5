"""CUDA graphs of a model: what they read wherever tasks come and go, and calls that are captured once and replayed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten

from dts.nn.deltas import ParameterDelta
from dts.nn.deltas.packed import Packed
from dts.nn.layers import Layer
from dts.nn.layers.kept_values import unchanged
from dts.nn.sharing import Recorded, Run, record_sharing

Record = Callable[[Run], Recorded]
WARM = 3  # calls before a capture: kernels are compiled and loaded, and rows are located, while nothing is captured


@dataclass(eq=False)
class Followed:
    """Of a graph.

    reads: what it reads, which stays in memory for it;  beyond: slots of tasks that were loaded since and are not in it
    """

    reads: list[object]
    beyond: set[int] = field(default_factory=set)

    def loaded(self, slot: int, reads: list[object]) -> None:
        """A task is in a slot now, with which calls would read these."""
        if unchanged(self.reads, reads):
            self.beyond.discard(slot)
        else:
            self.beyond.add(slot)


def read_by_calls(layers: Iterable[Layer]) -> list[object]:
    """All whose addresses kernels are given, and what decides which kernels there are, of what tasks change."""
    found: list[object] = []
    for layer in layers:
        found.append(layer)
        for parameter in layer.dts.parameters.values():
            found += _of_parameter(parameter)
    return found


def _of_parameter(parameter: ParameterDelta) -> list[object]:
    found: list[object] = [parameter]
    found += [table.source for table in (parameter.raw, parameter.values, parameter.added) if table.filled]
    found += [one for own in parameter.exact.values() for one in own]
    for matrix in parameter.matrices.values():
        found += _of_packed(matrix.main)
        for block in (*[b for own in matrix.blocks.values() for b in own], *matrix.fronts.values()):
            found += [block, *_of_packed(block.packed)]
    return found


def _of_packed(packed: Packed) -> list[object]:
    return [packed, *[one for bank in packed.filled for one in (bank, *bank.addresses())]]


def reserve(layers: Iterable[Layer], tasks: int) -> None:
    """Room for so many tasks in slots from 0 on, as large as the largest of each layer so far."""
    for layer in layers:
        for parameter in layer.dts.parameters.values():
            parameter.raw.reserve(tasks)
            for matrix in parameter.matrices.values():
                for bank in matrix.main.filled:
                    bank.reserve(tasks)


def cuda_graph(run: Run, warm: int = WARM) -> Recorded:
    """A call captured on the current CUDA device, after so many that were not."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(warm):
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = run()
    return graph.replay, out


class Captured:
    """A call of a model in a CUDA graph: called with other inputs of the same names, shapes and dtypes it gives the
    outputs of the tasks that are set now, in the memory of the last call's outputs.

    One thread at a time: calls of several take turns, and share the outputs.
    """

    def __init__(self, model: Any, inputs: Mapping[str, Any], record: Record, share_inputs: bool = False):
        self._model, self._turn = model, threading.Lock()
        self._given = {name: value.clone() if isinstance(value, Tensor) else value for name, value in inputs.items()}
        with torch.no_grad():
            self._replay, self.outputs = self._record_sharing(record) if share_inputs else record(self._run)
        self._rows, self._follows = model._state.rows, Followed(model.read_by_calls())
        model._state.graphs.add(self)

    def _run(self) -> Any:
        return self._model(**self._given)

    def _record_sharing(self, record: Record) -> Recorded:
        state, again = self._model._state, partial(cuda_graph, warm=0) if record is cuda_graph else record
        given = [value for value in self._given.values() if isinstance(value, Tensor)]
        with state.held():  # the two have to be of the same tasks
            return record_sharing(self._run, record, again, lambda: state.capturing, given)

    @torch.no_grad()
    def __call__(self, **inputs: Any) -> Any:
        """Raises ValueError that says all that is other than in the capture, and RuntimeError for tasks that the graph
        does not know."""
        self._check(inputs)
        with self._turn, self._model._state.held():
            self._check_tasks()
            for name, value in inputs.items():
                if isinstance(value, Tensor):
                    self._given[name].copy_(value)
            self._replay()
            return self.outputs

    def loaded(self, slot: int, reads: list[object]) -> None:
        self._follows.loaded(slot, reads)

    def _check(self, inputs: Mapping[str, Any]) -> None:
        wrong = [f"{name} is missing" for name in self._given if name not in inputs]
        for name, value in inputs.items():
            if name not in self._given:
                wrong.append(f"{name} was not there")
                continue
            own = self._given[name]
            if not isinstance(own, Tensor) or not isinstance(value, Tensor):
                if not _alike(own, value):
                    wrong.append(f"{name} is another one, whose contents the graph does not read")
            elif (value.shape, value.dtype) != (own.shape, own.dtype):
                wrong.append(f"{name} is {list(value.shape)} {value.dtype} and was {list(own.shape)} {own.dtype}")
        if wrong:
            raise ValueError(
                f"a captured call takes what it was captured with: {'; '.join(wrong)}.  Pad to that, or capture "
                "another for these"
            )

    def _check_tasks(self) -> None:
        state, loaded = self._model._state, self._model._loaded
        chosen = state.chosen
        if chosen.rows != self._rows:
            raise ValueError(
                f"the call was captured with tasks for {self._rows} rows, and there are some for {chosen.rows} now: "
                f"{'set_task()' if self._rows == 1 else f'set_tasks() with {self._rows}'}"
            )
        if chosen.missing:
            raise ValueError("; ".join(chosen.missing.values()))
        beyond = {slot for mixture in chosen.mixtures for slot in mixture} & self._follows.beyond
        if beyond:
            raise RuntimeError(
                f"{', '.join(map(repr, map(loaded.names.__getitem__, sorted(beyond))))}: loaded after the capture, and "
                "beyond the room that it knows: reserve(tasks) before a capture, or capture again"
            )


def _alike(one: Any, other: Any) -> bool:
    """Whether arguments that are no tensors are the same ones, or plain values that are equal."""
    if one is other:
        return True
    leaves, shape = tree_flatten(one)
    others, other_shape = tree_flatten(other)
    return (
        shape == other_shape
        and len(leaves) == len(others)
        and all(
            a is b or isinstance(a, bool | int | float | str) and type(a) is type(b) and a == b
            for a, b in zip(leaves, others)
        )
    )
