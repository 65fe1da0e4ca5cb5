"""All tasks' packed deltas of one matrix."""

from __future__ import annotations

import torch
from torch import Tensor

from dts.codec.factors import Factors
from dts.nn.deltas.packed import Block, Packed
from dts.nn.routing import gammas
from dts_kernels import Routing
from dts_kernels.parts import KINDS, Joined


class MatrixDelta:
    """Packed deltas of one [m, n] matrix: those that all tasks share, and blocks for factors with gaps."""

    def __init__(self, shape: tuple[int, int], device="cpu", transposed=False):
        self.shape, self.transposed = shape, transposed
        self.main = Packed(shape, device, transposed)
        self.blocks: dict[int, list[Block]] = {}  # slot -> its blocks
        self._joined: list[Joined] | None = None  # of all these banks, a kind each; made when first needed

    def add(self, slot: int, factors: Factors, row: int = 0) -> None:
        """Put factors into a slot; row: where their first row goes, for a part of a fused matrix."""
        rows, columns, shape = factors.rows, factors.columns, factors.shape
        self._joined = None
        if self.transposed:
            rows, columns, shape = columns, rows, shape[::-1]
        if rows is None and columns is None and shape == self.shape:
            self.main.add(slot, factors.stored)
            return
        if shape[0] != self.shape[0]:
            rows = (torch.arange(shape[0]) if rows is None else rows) + row
        size = shape[0] if rows is None else len(rows), shape[1] if columns is None else len(columns)
        own = Packed(size, transposed=self.transposed)
        own.add(slot, factors.stored)
        if own.slots:
            self.blocks.setdefault(slot, []).append(self._block(own, rows, columns))

    def __getstate__(self) -> dict:
        """Pointers for C are made again in a copy."""
        return vars(self) | {"_joined": None}

    def _block(self, packed: Packed, rows: Tensor | None, columns: Tensor | None) -> Block:
        lookup = None
        if rows is not None:
            lookup = torch.full((self.shape[0],), -1, dtype=torch.int32)
            lookup[rows] = torch.arange(len(rows), dtype=torch.int32)
        return Block(packed, rows, columns, lookup).to(self.main.device)

    def remove(self, slot: int) -> None:
        self._joined = None
        self.main.remove(slot)
        self.blocks.pop(slot, None)

    @property
    def slots(self) -> set[int]:
        return self.main.slots | set(self.blocks)

    def held(self) -> list[Tensor]:
        """Everything it holds in memory."""
        indices = [t for b in self._all_blocks() for t in (b.rows, b.columns, b.lookup) if t is not None]
        return indices + [t for packed in (self.main, *[b.packed for b in self._all_blocks()]) for t in packed.held()]

    def _all_blocks(self) -> list[Block]:
        return [block for blocks in self.blocks.values() for block in blocks]

    def to(self, device) -> None:
        self._joined = None
        self.main = self.main.to(device)
        self.blocks = {slot: [block.to(device) for block in blocks] for slot, blocks in self.blocks.items()}

    def linear(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, routing: Routing, adds: Tensor | None = None
    ) -> Tensor:
        """x W^T + b + the delta + gamma adds[task], all but blocks in one call; adds: float32 [slots, m] or None."""
        y = self.main.linear(x, weight, bias, routing, adds)
        return self._add_blocks(x, y, routing) if self.blocks else y

    def add_product(self, x: Tensor, y: Tensor, routing: Routing) -> Tensor:
        """y + x Delta^T of each row's tasks."""
        return self._add_blocks(x, self.main.product(x, y, routing), routing)

    def _add_blocks(self, x: Tensor, y: Tensor, routing: Routing) -> Tensor:
        for block in self._all_blocks():
            own = x if block.columns is None else x.index_select(-1, block.columns)
            part = block.packed.product(own, None, routing)
            y = y + part if block.rows is None else y.index_add_(-1, block.rows, part)
        return y

    def add_embedding(self, ids: Tensor, y: Tensor, routing: Routing) -> Tensor:
        """y + rows ``ids`` (int64 [...], -1 = none) of the delta; y [..., n] may be written into."""
        if all(block.columns is None for block in self._all_blocks()):
            if self._joined is None:
                self._joined = self._join()
            for joined in self._joined:
                y = joined.add(ids, y, routing)
            return y
        if self.main.first is not None:
            y = y + self._rows(self.main, ids, y, routing)
        for block in self._all_blocks():
            part = self._rows(block.packed, block.where(ids), y, routing)
            if block.columns is not None:
                part = part.new_zeros(*ids.shape, self.shape[1]).index_copy(-1, block.columns, part)
            y = y + part
        return y

    @staticmethod
    def _rows(packed: Packed, ids: Tensor, like: Tensor, routing: Routing) -> Tensor:
        return packed.rows(ids, like.new_zeros(*ids.shape, packed.shape[1]), routing)

    def _join(self) -> list[Joined]:
        """The banks of each kind, those of the blocks included."""
        pieces = [(self.main, None), *[(block.packed, block.lookup) for block in self._all_blocks()]]
        joined = []
        for name, kind in KINDS.items():
            banks = [(p.banks[name], lookup) for p, lookup in pieces if name in p.banks and p.banks[name].slots]
            if banks:
                joined.append(kind.join(banks, self.shape[0]))
        return joined

    def dense(self, base: Tensor, routing: Routing) -> Tensor:
        """base + the delta of the one mixture of ``routing`` (one entry), in base's dtype [m, n]."""
        blocks = [(block.packed, block.rows, block.columns) for block in self._all_blocks()]
        for packed, rows, columns in [(self.main, None, None), *blocks]:
            if packed.first is None:
                continue
            gamma = gammas(routing, packed.room)[0]
            if rows is None and columns is None:
                base = packed.dense(gamma, base)
                continue
            part = packed.dense(gamma, dtype=base.dtype)
            if columns is not None:
                part = part.new_zeros(part.shape[0], base.shape[1]).index_copy(1, columns, part)
            base = base + part if rows is None else base.index_add(0, rows, part)
        return base
