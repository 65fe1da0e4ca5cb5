"""Tasks' packed parts of one matrix, whole or only of some of its rows and columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dts.nn.routing import gammas
from dts_kernels import Routing
from dts_kernels.cpu.rules import whole_from
from dts_kernels.embedding_parts import row_in
from dts_kernels.ops import Replay, Together, task_rows
from dts_kernels.parts import KINDS, PartBank, base_product, kind_of, replay, together, whole_pays
from dts_kernels.rounded import Addends

_compiling = torch.compiler.is_compiling


class Packed:
    """What tasks store of one [m, n] matrix: a bank for each kind of part, made when a task first has some.

    transposed: what is stored is of the [n, m] matrix.
    filled: the banks that hold something, in the order of `KINDS`;  first, rest: these, first is None without any
    start: whether one of them may start before the base's product;  together: all of them in one call, None: in turn
    replay: the same on a GPU, of calls like those before
    whole: numbers of an input of one mixture from which its deltas are added to a copy of the weight (on a CPU)
    """

    def __init__(self, shape: tuple[int, int], device: torch.device | str = "cpu", transposed: bool = False):
        self.shape, self.device, self.transposed = (shape[0], shape[1]), torch.device(device), transposed
        self.banks: dict[str, PartBank] = {}
        self.filled: list[PartBank] = []
        self.first: PartBank | None = None
        self.rest: tuple[PartBank, ...] = ()
        self.start = False
        self.together: Together | None = None
        self.replay: Replay | None = None
        self.whole = float("inf")

    def add(self, slot: int, stored: Sequence[Any]) -> None:
        """Put all that a task stores, data of any kinds, into a free or used slot."""
        of_kinds: dict[str, list[Any]] = {}
        for data in stored:
            of_kinds.setdefault(kind_of(data).name, []).append(data)
        for name, own in of_kinds.items():
            if name not in self.banks:
                self.banks[name] = KINDS[name].bank(self.shape[1], self.shape[0], self.device, self.transposed)
            self.banks[name].add(slot, own)
        for name in self.banks.keys() - of_kinds.keys():
            self.banks[name].remove(slot)
        self._refresh()

    def remove(self, slot: int) -> None:
        for bank in self.banks.values():
            bank.remove(slot)
        self._refresh()

    def _refresh(self) -> None:
        banks = [self.banks[name] for name in KINDS if name in self.banks and self.banks[name].filled]
        if banks and banks == self.filled and self.device.type == "cpu":
            return  # whatever they hold, they are multiplied with as before
        if self.replay is None or banks != self.filled:
            self.replay = replay(banks)
        self.filled, self.first, self.rest = banks, (banks[0] if banks else None), tuple(banks[1:])
        self.start = any(bank.starts for bank in banks)
        self.together = together(banks)
        self.whole = self.shape[1] * whole_from(*self.shape, self.banks.get("sample") in banks)

    @property
    def slots(self) -> set[int]:
        return {slot for bank in self.banks.values() for slot in bank.slots}

    @property
    def room(self) -> int:
        """Slots that the gammas of `dense` should be for."""
        return max([0, *[bank.room for bank in self.filled]])

    def to(self, device: torch.device | str) -> Packed:
        moved = Packed(self.shape, device, self.transposed)
        moved.banks = {name: bank.to(device) for name, bank in self.banks.items()}
        moved._refresh()
        return moved

    def held(self) -> list[Tensor]:
        return [t for bank in self.banks.values() for t in bank.held()]

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None, routing: Routing, adds: Addends | None) -> Tensor:
        """x W^T + b + x Delta^T + gamma adds[task] of each row's tasks, the first kind's together with the base."""
        if self.first is None:
            return base_product(x, weight, bias, routing, adds)
        if self.replay is not None and not _compiling():
            made = self.replay.linear(x, weight, bias, routing, adds)
            if made is not None:
                return made
        if self.start:
            return self._linear_beside(x, weight, bias, routing, adds)
        if not _compiling():
            if x.numel() >= self.whole and whole_pays(x, weight, bias, adds, routing):
                return self._linear_whole(x, weight, bias, routing, adds)
            made = None if self.together is None else self.together.linear(x, weight, bias, routing, adds)
            if made is not None:
                return made
        y = self.first.linear(x, weight, bias, routing, adds)
        for bank in self.rest:
            y = bank.product(x, y, routing)
        return y

    def _linear_beside(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, routing: Routing, adds: Addends | None
    ) -> Tensor:
        """The same, in the same order, with what banks start before the base's product."""
        banks = self.filled
        started = [bank.start(x, routing) for bank in banks]
        if started[0] is None:
            y = banks[0].linear(x, weight, bias, routing, adds)
        else:
            y = started[0](base_product(x, weight, bias, routing, adds))
        for bank, finish in zip(banks[1:], started[1:]):
            y = bank.product(x, y, routing) if finish is None else finish(y)
        return y

    def _linear_whole(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, routing: Routing, adds: Addends | None
    ) -> Tensor:
        """The same of many rows of one mixture: its deltas in a copy of the weight, and of the bias."""
        gamma = gammas(routing, self.room)[0]
        full = None if self.together is None else self.together.whole(weight, routing, gamma)
        if full is None:
            full = self.dense(gamma, weight)
        if adds is not None:
            bias = task_rows(adds, routing, x.dtype, bias)[0]
        return torch.nn.functional.linear(x, full, bias)

    def product(self, x: Tensor, y: Tensor | None, routing: Routing) -> Tensor:
        """y (None: zeros) + x Delta^T of each row's tasks."""
        for bank in self.filled:
            y = bank.product(x, y, routing)
        return x.new_zeros(*x.shape[:-1], self.shape[0]) if y is None else y

    def rows(self, ids: Tensor, y: Tensor, routing: Routing) -> Tensor:
        """y + rows ``ids`` (int64 [...], -1 = none) of the delta; y [..., n]."""
        for bank in self.filled:
            y = bank.rows(ids, y, routing)
        return y

    def dense(self, gamma: Tensor, base: Tensor | None = None, dtype: torch.dtype | None = None) -> Tensor:
        """base (None: zeros) + the sum of gamma Delta, [m, n] in ``dtype`` (None: base's); gamma: float32 [slots]."""
        for bank in self.filled:
            base = bank.dense(gamma, base, dtype)
        return torch.zeros(self.shape, dtype=dtype, device=self.device) if base is None else base


@dataclass
class Block:
    """Factors that cover only some rows or columns of the matrix (int64 indices; None = all), or begin before it.

    front: so many first rows and columns of ``packed`` are none of the matrix, nor of ``rows`` and ``columns``
    """

    packed: Packed
    rows: Tensor | None
    columns: Tensor | None
    lookup: Tensor | None  # int32 [all rows]: row of the matrix -> row of the packed one, -1 = none
    front: tuple[int, int] = (0, 0)

    @classmethod
    def of(
        cls,
        packed: Packed,
        rows: Tensor | None,
        columns: Tensor | None,
        height: int,
        device: torch.device | str,
        front: tuple[int, int] = (0, 0),
    ) -> Block:
        """A block of a matrix with ``height`` rows."""
        lookup = None
        if rows is not None:
            lookup = torch.full((height,), -1, dtype=torch.int32)
            lookup[rows] = torch.arange(len(rows), dtype=torch.int32)
        return cls(packed, rows, columns, lookup, front).to(device)

    @property
    def joins(self) -> bool:
        """Whether its rows are rows of the matrix, all columns of them."""
        return self.columns is None and self.front == (0, 0)

    def to(self, device: torch.device | str) -> Block:
        move = lambda t: None if t is None else t.to(device)  # noqa: E731
        return Block(self.packed.to(device), move(self.rows), move(self.columns), move(self.lookup), self.front)

    def held(self) -> list[Tensor]:
        indices = [t for t in (self.rows, self.columns, self.lookup) if t is not None]
        return indices + self.packed.held()

    def add_product(self, x: Tensor, y: Tensor, routing: Routing) -> Tensor:
        """y + x Delta^T of each row's tasks; x and y of the whole matrix, y may be written into."""
        above, left = self.front
        x = x if self.columns is None else x.index_select(-1, self.columns)
        x = torch.nn.functional.pad(x, (left, 0)) if left else x
        part = self.packed.product(x, None, routing)
        part = part[..., above:] if above else part
        if self.rows is None:
            return y + part
        differentiated = torch.is_grad_enabled() and y.requires_grad  # what an op returned is not written into then
        return (y.index_add if differentiated else y.index_add_)(-1, self.rows, part)

    def look_up(self, ids: Tensor, y: Tensor, routing: Routing) -> Tensor:
        """y + rows ``ids`` (int64 [...], -1 = none) of the delta; y [..., n]."""
        above, left = self.front
        own = row_in(self.lookup, ids)
        own = torch.where(own < 0, -1, own + above) if above else own
        part = self.packed.rows(own, y.new_zeros(*ids.shape, self.packed.shape[1]), routing)[..., left:]
        if self.columns is not None:
            part = part.new_zeros(y.shape).index_copy(-1, self.columns, part)
        return y + part

    def add_dense(self, gamma: Tensor, base: Tensor) -> Tensor:
        """base + the sum of gamma Delta, [m, n] of the whole matrix."""
        above, left = self.front
        part = self.packed.dense(gamma, dtype=base.dtype)[above:, left:]
        if self.columns is not None:
            part = part.new_zeros(part.shape[0], base.shape[1]).index_copy(1, self.columns, part)
        return base + part if self.rows is None else base.index_add(0, self.rows, part)
