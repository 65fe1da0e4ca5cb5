"""All tasks' packed deltas of one matrix."""

from __future__ import annotations

import torch
from torch import Tensor

from dts.codec.factors import Factors
from dts.nn.deltas.packed import Block, Packed
from dts.nn.routing import gammas
from dts_kernels import EmbeddingParts, Routing, add_embedding, add_rows


class MatrixDelta:
    """Packed deltas of one [m, n] matrix: those that all tasks share, and blocks for factors with gaps."""

    def __init__(self, shape: tuple[int, int], device="cpu", transposed=False):
        self.shape, self.transposed = shape, transposed
        self.main = Packed(shape, device, transposed)
        self.blocks: dict[int, list[Block]] = {}  # slot -> its blocks
        self._parts: EmbeddingParts | None = None  # of these banks, made when first needed

    def add(self, slot: int, factors: Factors, row: int = 0) -> None:
        """Put factors into a slot; row: where their first row goes, for a part of a fused matrix."""
        packed, rows, columns, shape = factors.packed, factors.rows, factors.columns, factors.shape
        if factors.rank == 0:
            return
        self._parts = None
        if self.transposed:
            packed, rows, columns, shape = packed.transpose(), columns, rows, shape[::-1]
        if rows is None and columns is None and shape == self.shape:
            self.main.add(slot, packed, factors.samples)
            return
        if shape[0] != self.shape[0]:
            rows = (torch.arange(shape[0]) if rows is None else rows) + row
        own = Packed(packed.shape, transposed=self.transposed)
        own.add(slot, packed, factors.samples)
        self.blocks.setdefault(slot, []).append(self._block(own, rows, columns))

    def __getstate__(self) -> dict:
        """Pointers for C are made again in a copy."""
        return vars(self) | {"_parts": None}

    def _block(self, packed: Packed, rows: Tensor | None, columns: Tensor | None) -> Block:
        lookup = None
        if rows is not None:
            lookup = torch.full((self.shape[0],), -1, dtype=torch.int32)
            lookup[rows] = torch.arange(len(rows), dtype=torch.int32)
        return Block(packed, rows, columns, lookup).to(self.main.bank.device)

    def remove(self, slot: int) -> None:
        self._parts = None
        self.main.remove(slot)
        self.blocks.pop(slot, None)

    @property
    def slots(self) -> set[int]:
        return set(self.main.bank.slots) | set(self.blocks)

    def held(self) -> list[Tensor]:
        """Everything it holds in memory."""
        indices = [t for b in self._all_blocks() for t in (b.rows, b.columns, b.lookup) if t is not None]
        return indices + [t for packed in (self.main, *[b.packed for b in self._all_blocks()]) for t in packed.held()]

    def _all_blocks(self) -> list[Block]:
        return [block for blocks in self.blocks.values() for block in blocks]

    def to(self, device) -> None:
        self._parts = None
        self.main = self.main.to(device)
        self.blocks = {slot: [block.to(device) for block in blocks] for slot, blocks in self.blocks.items()}

    def linear(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, routing: Routing, adds: Tensor | None = None
    ) -> Tensor:
        """x W^T + b + the delta + gamma adds[task], all but blocks in one call; adds: float32 [slots, m] or None."""
        if self.main.bank.slots:
            y = self.main.linear(x, weight, bias, routing, adds)
        else:
            y = torch.nn.functional.linear(x, weight, bias)
            y = y if adds is None else add_rows(y, adds, routing)
        return self._add_blocks(x, y, routing) if self.blocks else y

    def add_product(self, x: Tensor, y: Tensor, routing: Routing) -> Tensor:
        """y + x Delta^T of each row's tasks."""
        if self.main.bank.slots:
            y = self.main.product(x, routing, y)
        return self._add_blocks(x, y, routing)

    def _add_blocks(self, x: Tensor, y: Tensor, routing: Routing) -> Tensor:
        for block in self._all_blocks():
            part = block.packed.product(x if block.columns is None else x.index_select(-1, block.columns), routing)
            y = y + part if block.rows is None else y.index_add_(-1, block.rows, part)
        return y

    def add_embedding(self, ids: Tensor, y: Tensor, routing: Routing) -> Tensor:
        """y + rows ``ids`` (int64 [...], -1 = none) of the delta; y [..., n] may be written into."""
        if all(block.columns is None for block in self._all_blocks()):
            if self._parts is None:
                banks = [(self.main.bank, None)] if self.main.bank.slots else []
                banks += [(block.packed.bank, block.lookup) for block in self._all_blocks()]
                self._parts = EmbeddingParts(banks, self.shape[0])
            y = self.main.sampled_rows(ids, add_embedding(ids, y, self._parts, routing), routing)
            for block in self._all_blocks():
                if len(block.packed.samples):
                    y = block.packed.sampled_rows(block.where(ids), y, routing)
            return y
        if self.main.bank.slots:
            y = y + self.main.rows(ids, routing, y.dtype)
        for block in self._all_blocks():
            part = block.packed.rows(block.where(ids), routing, y.dtype)
            if block.columns is not None:
                part = part.new_zeros(*ids.shape, self.shape[1]).index_copy(-1, block.columns, part)
            y = y + part
        return y

    def dense(self, base: Tensor, routing: Routing) -> Tensor:
        """base + the delta of the one mixture of ``routing`` (one entry), in base's dtype [m, n]."""
        blocks = [(block.packed, block.rows, block.columns) for block in self._all_blocks()]
        for packed, rows, columns in [(self.main, None, None), *blocks]:
            if not packed.bank.slots:
                continue
            gamma = gammas(routing, packed.bank.table.shape[0])[0]
            if rows is None and columns is None:
                base = packed.dense(gamma, base)
                continue
            part = packed.dense(gamma, dtype=base.dtype)
            if columns is not None:
                part = part.new_zeros(part.shape[0], base.shape[1]).index_copy(1, columns, part)
            base = base + part if rows is None else base.index_add(0, rows, part)
        return base
