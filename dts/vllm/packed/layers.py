"""What all loaded tasks change of one layer of vLLM, as this process has it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dts.adapter import Entry
from dts.codec import Factors
from dts.codec.shards import shard
from dts.nn.deltas import MatrixDelta, Table
from dts.vllm.packed.batch import Rows


class Whole:
    """A small matrix [m, n] that an adapter has whole."""

    def __init__(self, matrix: Tensor):
        self.matrix = matrix

    def product(self, x: Tensor) -> Tensor:
        return torch.nn.functional.linear(x, self.matrix.to(x.dtype))

    def rows(self, ids: Tensor, dtype: torch.dtype) -> Tensor:
        return self.matrix[ids].to(dtype)

    def held(self) -> list[Tensor]:
        return [self.matrix]


@dataclass
class Span:
    """A run of a layer's rows that one matrix of the checkpoint has; others: what adapters have whole, by slot."""

    matrix: MatrixDelta
    others: dict[int, list[Whole]] = field(default_factory=dict)

    @property
    def slots(self) -> set[int]:
        return self.matrix.slots | self.others.keys()

    def add(self, slot: int, entry: Entry, rows: range, columns: range) -> None:
        """Put what an entry stores of those rows and columns into a slot."""
        found = entry.factors
        if not isinstance(found, Factors):
            matrix = entry.delta().reshape(entry.base_shape[0], -1)
            part = matrix[rows.start : rows.stop, columns.start : columns.stop].clone()
            self.others.setdefault(slot, []).append(Whole(part))
        elif own := shard(found, rows, columns):
            self.matrix.add_shard(slot, own)

    def remove(self, slot: int) -> None:
        self.matrix.remove(slot)
        self.others.pop(slot, None)

    def product(self, x: Tensor, y: Tensor, rows: Rows) -> Tensor:
        """y + x D^T of each row's task."""
        if self.matrix.slots & rows.active:
            y = self.matrix.add_product(x, y, rows.routing)
        return self._more(y, rows, lambda one, at: one.product(x[at]))

    def look_up(self, ids: Tensor, y: Tensor, rows: Rows) -> Tensor:
        """y + rows ``ids`` of D."""
        if self.matrix.slots & rows.active:
            y = self.matrix.add_embedding(ids, y, rows.routing)
        return self._more(y, rows, lambda one, at: one.rows(ids[at], y.dtype))

    def _more(self, y: Tensor, rows: Rows, part: Callable[[Whole, Tensor], Tensor]) -> Tensor:
        for slot in sorted(self.others.keys() & rows.active):
            at = rows.of(slot)
            for one in self.others[slot]:
                y = y.index_add(0, at, part(one, at))
        return y

    def held(self) -> list[Tensor]:
        return [*self.matrix.held(), *[t for parts in self.others.values() for one in parts for t in one.held()]]


class LinearDelta:
    """Of a linear layer or an embedding [rows, columns]: spans of its weight, and its bias as one vector a task."""

    def __init__(self, rows: int, columns: int):
        self.size, self.columns = rows, columns
        self.spans: dict[int, Span] = {}  # first row -> what is there
        self.bias = Table()
        self.slots: frozenset[int] = frozenset()  # of the tasks that change it

    def _refresh(self) -> None:
        self.slots = frozenset(self.bias.tensors).union(*(span.slots for span in self.spans.values()))

    def add_weight(self, slot: int, entry: Entry, at: int, rows: range, columns: range) -> None:
        """at: the first of the layer's rows that the tensor's ``rows`` are."""
        if at not in self.spans:
            self.spans[at] = Span(MatrixDelta((len(rows), len(columns))))
        self.spans[at].add(slot, entry, rows, columns)
        self._refresh()

    def add_bias(self, slot: int, entry: Entry, at: int, rows: range) -> None:
        whole = self.bias.tensors.get(slot, torch.zeros(self.size)).clone()
        whole[at : at + len(rows)] = entry.delta()[rows.start : rows.stop]
        self.bias.add(slot, whole)
        self._refresh()

    def remove(self, slot: int) -> None:
        for span in self.spans.values():
            span.remove(slot)
        self.bias.remove(slot)
        self._refresh()

    def apply(self, x: Tensor, y: Tensor, rows: Rows, biased: bool) -> Tensor:
        """y + x D^T, and the bias where the layer adds its own.  x [T, columns], y [T, rows] or wider."""
        for at, span in self.spans.items():
            if not span.slots & rows.active:
                continue
            end = at + span.matrix.shape[0]
            if at == 0 and end == y.shape[1]:
                y = span.product(x, y, rows)
            else:
                y[:, at:end] = span.product(x, y[:, at:end].contiguous(), rows)
        if biased and self.bias.tensors.keys() & rows.active:
            y[:, : self.size] += self.bias.rows(rows.routing, y.dtype)
        return y

    def look_up(self, ids: Tensor, y: Tensor, rows: Rows) -> Tensor:
        """y + rows ``ids`` of D, which are those of the first span; ids beyond it are other processes'."""
        span = self.spans.get(0)
        if span is None or not span.slots & rows.active:
            return y
        return span.look_up(ids.clamp(max=span.matrix.shape[0] - 1), y, rows)

    def held(self) -> list[Tensor]:
        return [*[t for span in self.spans.values() for t in span.held()], *self.bias.tensors.values()]


class NormDelta:
    """Of a norm: its weight and bias."""

    def __init__(self) -> None:
        self.tables = {"weight": Table(), "bias": Table()}
        self.slots: frozenset[int] = frozenset()

    def _refresh(self) -> None:
        self.slots = frozenset(slot for table in self.tables.values() for slot in table.tensors)

    def add(self, slot: int, parameter: str, entry: Entry) -> None:
        self.tables[parameter].add(slot, entry.delta())
        self._refresh()

    def remove(self, slot: int) -> None:
        for table in self.tables.values():
            table.remove(slot)
        self._refresh()

    def values(self, parameter: str, base: Tensor, rows: Rows) -> Tensor:
        """The parameter of each row: [R, n], R 1 or all rows."""
        table = self.tables[parameter]
        return table.added_to(base, rows.routing) if table.tensors else base[None]

    def held(self) -> list[Tensor]:
        return [t for table in self.tables.values() for t in table.tensors.values()]


Delta = LinearDelta | NormDelta


@dataclass(frozen=True)
class Place:
    """Where a tensor of a checkpoint is: a parameter of a layer, or a part of one.

    shape: of the whole tensor;  at: the first of the layer's rows that its ``rows`` are;  columns: of a matrix
    """

    delta: Delta
    parameter: str
    shape: tuple[int, ...]
    at: int = 0
    rows: range = range(0)
    columns: range = range(0)

    def misfit(self, entry: Entry) -> str:
        """Why an entry cannot be put here, or nothing."""
        if entry.task_only or entry.kind == "value":
            return "the fine-tune has its own, which takes no difference to the base"
        if entry.added_rows is not None:
            return "its vocabulary grew, and vLLM's has one size for all tasks"
        if tuple(entry.base_shape) != self.shape:
            return f"the adapter is for {list(entry.base_shape)}, the model has {list(self.shape)}"
        if entry.kind == "exact":
            return (
                "it keeps every bit (method exact), for which vLLM's engine has no place: give it what dts apply writes"
            )
        if entry.kind not in ("factors", "delta"):
            return f"{entry.kind} have no place in vLLM's engine"
        return ""

    def add(self, slot: int, entry: Entry) -> None:
        if isinstance(self.delta, NormDelta):
            self.delta.add(slot, self.parameter, entry)
        elif self.parameter == "weight":
            self.delta.add_weight(slot, entry, self.at, self.rows, self.columns)
        else:
            self.delta.add_bias(slot, entry, self.at, self.rows)
