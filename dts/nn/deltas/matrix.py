"""All tasks' packed deltas of one matrix."""

from __future__ import annotations

import torch
from torch import Tensor

from dts.codec.factors import Factors
from dts.codec.shards import Shard
from dts.nn.deltas.held import Held, as_op, found, in_program
from dts.nn.deltas.packed import Block, Packed
from dts.nn.deltas.table import Table
from dts.nn.routing import gammas
from dts_kernels import Routing
from dts_kernels.parts import KINDS, Joined


class MatrixDelta(Held):
    """Packed deltas of one [m, n] matrix: those that all tasks share, and blocks for factors with gaps.

    blocks: a task's own, by slot;  fronts: samples that begin before the matrix, of all tasks, by how much
    """

    def __init__(self, shape: tuple[int, int], device="cpu", transposed=False):
        super().__init__()
        self.shape, self.transposed = shape, transposed
        self.main = Packed(shape, device, transposed)
        self.blocks: dict[int, list[Block]] = {}  # slot -> its blocks
        self.fronts: dict[tuple[int, int], Block] = {}
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
            self._add_block(slot, own, rows, columns)

    def add_shard(self, slot: int, shard: Shard, row: int = 0) -> None:
        """Put what `dts.codec.shards.shard` cut out of a larger matrix into a slot; of none that is transposed.

        row: where its first row goes, for a part of a fused matrix.
        """
        self._joined = None
        if shard.factors.stored:
            self.add(slot, shard.factors, row)
        height, rows = shard.factors.shape[0], shard.rows
        if height != self.shape[0]:
            rows = (torch.arange(height) if rows is None else rows) + row
        fronts = dict.fromkeys((cut.rows, cut.columns) for cut in shard.cuts)
        for front in fronts:
            samples = [cut.sample for cut in shard.cuts if (cut.rows, cut.columns) == front]
            if rows is not None or shard.columns is not None:
                own = Packed(samples[0].shape)
                own.add(slot, samples)
                self._add_block(slot, own, rows, shard.columns, front)
                continue
            if front not in self.fronts:
                shared = Packed(samples[0].shape, self.main.device)
                self.fronts[front] = Block.of(shared, None, None, self.shape[0], self.main.device, front)
            self.fronts[front].packed.add(slot, samples)

    def _add_block(
        self, slot: int, own: Packed, rows: Tensor | None, columns: Tensor | None, front: tuple[int, int] = (0, 0)
    ) -> None:
        block = Block.of(own, rows, columns, self.shape[0], self.main.device, front)
        self.blocks.setdefault(slot, []).append(block)

    def __getstate__(self) -> dict:
        """Pointers for C are made again in a copy."""
        return super().__getstate__() | {"_joined": None}

    def remove(self, slot: int) -> None:
        self._joined = None
        self.main.remove(slot)
        self.blocks.pop(slot, None)
        for block in self.fronts.values():
            block.packed.remove(slot)
        self.fronts = {front: block for front, block in self.fronts.items() if block.packed.slots}

    @property
    def slots(self) -> set[int]:
        return self.main.slots.union(self.blocks, *(block.packed.slots for block in self.fronts.values()))

    @property
    def in_one(self) -> bool:
        """Whether all of it is of the whole matrix, nothing in blocks."""
        return not self.blocks and not self.fronts

    def held(self) -> list[Tensor]:
        """Everything it holds in memory."""
        return self.main.held() + [t for block in self._all_blocks() for t in block.held()]

    def _all_blocks(self) -> list[Block]:
        return [*[block for blocks in self.blocks.values() for block in blocks], *self.fronts.values()]

    def to(self, device) -> None:
        self._joined = None
        self.main = self.main.to(device)
        self.blocks = {slot: [block.to(device) for block in blocks] for slot, blocks in self.blocks.items()}
        self.fronts = {front: block.to(device) for front, block in self.fronts.items()}

    def linear(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, routing: Routing, adds: Table | None = None
    ) -> Tensor:
        """x W^T + b + the delta + gamma adds[task], all but blocks in one call; adds: [slots, m] or None."""
        if in_program(x):
            given = [x, weight, *([] if bias is None else [bias]), *([] if adds is None else [adds.key])]
            return as_op(self, "_linear_in_program", given, routing, (*x.shape[:-1], self.shape[0]), x.dtype)
        y = self.main.linear(x, weight, bias, routing, None if adds is None else adds.wide)
        return y if self.in_one else self._add_blocks(x, y, routing)

    def _linear_in_program(
        self, x: Tensor, weight: Tensor, *others: Tensor, routing: Routing, dtype: torch.dtype
    ) -> Tensor:
        """others: the bias where there is one, then the key of a table where there is one, int64 []."""
        bias = others[0] if others and others[0].dim() else None
        adds = found(others[-1]) if others and not others[-1].dim() else None
        return self.linear(x, weight, bias, routing, adds)

    def add_product(self, x: Tensor, y: Tensor, routing: Routing) -> Tensor:
        """y + x Delta^T of each row's tasks; y [..., m] may be written into."""
        if in_program(x):
            return as_op(self, "_add_in_program", [x, y], routing, y.shape, y.dtype)
        return self._add_blocks(x, self.main.product(x, y, routing), routing)

    def _add_in_program(self, x: Tensor, y: Tensor, routing: Routing, dtype: torch.dtype) -> Tensor:
        return self.add_product(x, y if self.in_one else y.clone(), routing)

    def _add_blocks(self, x: Tensor, y: Tensor, routing: Routing) -> Tensor:
        for block in self._all_blocks():
            y = block.add_product(x, y, routing)
        return y

    def add_embedding(self, ids: Tensor, y: Tensor, routing: Routing) -> Tensor:
        """y + rows ``ids`` (int64 [...], -1 = none) of the delta; y [..., n] may be written into."""
        if in_program(y):
            return as_op(self, "_embed_in_program", [ids, y], routing, y.shape, y.dtype)
        if all(block.joins for block in self._all_blocks()):
            if self._joined is None:
                self._joined = self._join()
            for joined in self._joined:
                y = joined.add(ids, y, routing)
            return y
        if self.main.first is not None:
            y = y + self.main.rows(ids, y.new_zeros(*ids.shape, self.shape[1]), routing)
        for block in self._all_blocks():
            y = block.look_up(ids, y, routing)
        return y

    def _embed_in_program(self, ids: Tensor, y: Tensor, routing: Routing, dtype: torch.dtype) -> Tensor:
        return self.add_embedding(ids, y.clone(), routing)

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
        if self.main.first is not None:
            base = self.main.dense(gammas(routing, self.main.room)[0], base)
        for block in self._all_blocks():
            base = block.add_dense(gammas(routing, block.packed.room)[0], base)
        return base
