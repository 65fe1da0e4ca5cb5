"""All tasks' deltas of one parameter, in the forms an adapter stores them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

from dts.codec.factors import Factors
from dts.nn.routing import gammas
from dts_kernels import (
    Bank,
    EmbeddingParts,
    PackedFactors,
    Routing,
    SampleBank,
    Samples,
    add_dense_samples,
    add_embedding,
    add_rows,
    add_sampled_rows,
    add_samples,
    delta_embedding,
    delta_linear,
    linear,
    reconstruct,
)
from dts_kernels.bank import EAGER
from dts_kernels.ops import direct


@dataclass
class Piece:
    """What one entry of an adapter changes of one parameter.

    kind: "factors" (data: `Factors`), "raw" (a delta), "value" (a whole tensor), "added" (rows beyond the base's)
    expert: index into a parameter [E, m, n];  row: where it starts, for a part of a fused matrix
    """

    kind: str
    data: Factors | Tensor
    expert: int | None = None
    row: int | None = None


class Packed:
    """Packed components and samples of tasks of one [m, n] matrix.

    transposed: samples are of the [n, m] matrix; components have two sides to exchange instead.
    """

    def __init__(self, shape: tuple[int, int], device="cpu", transposed=False):
        self.bank = Bank(shape[1], shape[0], device)
        self.samples = SampleBank(shape[1], shape[0], device, transposed)

    def add(self, slot: int, packed: PackedFactors, samples: tuple[Samples, ...]) -> None:
        self.bank.add(slot, packed)
        if samples:
            self.samples.add(slot, samples)

    def remove(self, slot: int) -> None:
        self.bank.remove(slot)
        self.samples.remove(slot)

    def to(self, device) -> Packed:
        moved = Packed(self.bank.shape, device, self.samples.transposed)
        moved.bank, moved.samples = self.bank.to(device), self.samples.to(device)
        return moved

    def held(self) -> list[Tensor]:
        return self.bank.packed + self.samples.arguments[0]

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None, routing: Routing, adds: Tensor | None) -> Tensor:
        return self._sampled(x, linear(x, weight, bias, self.bank, routing, adds), routing)

    def product(self, x: Tensor, routing: Routing, y: Tensor | None = None) -> Tensor:
        """y (None: zeros) + x Delta^T of each row's tasks."""
        return self._sampled(x, delta_linear(x, self.bank, routing, y), routing)

    def _sampled(self, x: Tensor, y: Tensor, routing: Routing) -> Tensor:
        return add_samples(x, y, self.samples, routing) if len(self.samples) else y

    def rows(self, ids: Tensor, routing: Routing, dtype: torch.dtype) -> Tensor:
        """Rows ``ids`` (int64 [...], -1 = none) of the delta: dtype [..., n]."""
        return self.sampled_rows(ids, delta_embedding(ids, self.bank, routing, dtype), routing)

    def sampled_rows(self, ids: Tensor, y: Tensor, routing: Routing) -> Tensor:
        return add_sampled_rows(ids, y, self.samples, routing) if len(self.samples) else y

    def dense(self, gamma: Tensor, base: Tensor | None = None, dtype: torch.dtype | None = None) -> Tensor:
        full = reconstruct(self.bank, gamma, base, dtype)
        return add_dense_samples(full, self.samples, gamma) if len(self.samples) else full


@dataclass
class Block:
    """A task's factors that cover only some rows or columns of the matrix (int64 indices; None = all)."""

    packed: Packed
    rows: Tensor | None
    columns: Tensor | None
    lookup: Tensor | None  # int32 [all rows]: row of the matrix -> row of the packed one, -1 = none

    def to(self, device) -> Block:
        move = lambda t: None if t is None else t.to(device)  # noqa: E731
        return Block(self.packed.to(device), move(self.rows), move(self.columns), move(self.lookup))

    def where(self, ids: Tensor) -> Tensor:
        """Rows of the packed matrix for rows of the whole one."""
        return ids if self.lookup is None else torch.where(ids < 0, -1, self.lookup[ids.clamp(min=0)].long())


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


class Table:
    """Raw tensors of the tasks that have one, stacked by slot; sizes of dim 0 may differ, shorter ones end in zeros."""

    def __init__(self, device="cpu"):
        self.device = torch.device(device)
        self.tensors: dict[int, Tensor] = {}
        self._refresh()

    def add(self, slot: int, tensor: Tensor) -> None:
        before = dict(vars(self), tensors=dict(self.tensors))
        try:
            self.tensors[slot] = tensor.detach().to(self.device)
            self._refresh()
        except BaseException:  # no memory, or sizes that do not stack: as it was
            vars(self).update(before)
            raise

    def remove(self, slot: int) -> None:
        self.tensors.pop(slot, None)
        self._refresh()

    def to(self, device) -> None:
        self.device = torch.device(device)
        self.tensors = {slot: tensor.to(device) for slot, tensor in self.tensors.items()}
        self._refresh()

    def _refresh(self) -> None:
        """Make the stack again; beyond EAGER tasks on the CPU when first needed, see `Bank`."""
        self._wide = self._stack = self._length = None
        self.longest = max((t.shape[0] if t.dim() else 1 for t in self.tensors.values()), default=0)
        if self.device.type != "cpu" or len(self.tensors) <= EAGER:
            self._make()

    @property
    def stack(self) -> Tensor | None:
        """[slots, longest, ...]"""
        if self._stack is None:
            self._make()
        return self._stack

    @property
    def length(self) -> Tensor | None:
        """int64 [slots], 0 = this slot has none"""
        if self._stack is None:
            self._make()
        return self._length

    def _make(self) -> None:
        if not self.tensors:
            return
        first = next(iter(self.tensors.values()))
        shape = (max(self.tensors) + 1, self.longest, *first.shape[1:]) if first.dim() else (max(self.tensors) + 1,)
        dtype = reduce(torch.promote_types, [t.dtype for t in self.tensors.values()])
        self._stack = torch.zeros(shape, dtype=dtype, device=self.device)
        self._length = torch.zeros(shape[0], dtype=torch.int64, device=self.device)
        for slot, tensor in list(self.tensors.items()):
            if tensor.dim():
                self._stack[slot, : tensor.shape[0]] = tensor
                self.tensors[slot] = self._stack[slot, : tensor.shape[0]]  # a view: the stack is the only copy
            else:
                self._stack[slot] = tensor
            self._length[slot] = self.longest if not tensor.dim() else tensor.shape[0]

    @property
    def wide(self) -> Tensor:
        """The stack in float32, as kernels add it."""
        if self._wide is None:
            self._wide = self.stack.to(torch.float32)
        return self._wide

    def rows(self, routing: Routing, dtype: torch.dtype) -> Tensor:
        """Sum of gamma * tensor over each entry's tasks: dtype [entries, longest, ...]; not to be written into."""
        if routing.slots.shape[0] == 1 and direct(routing.slots, routing.weights, self.stack):
            # on a CPU, where a norm needs less time than the operations below: one task's row as it lies there
            used = [(s, w) for s, w in zip(routing.slots[0].tolist(), routing.weights[0].tolist()) if s in self.tensors]
            if len(used) == 1:
                row = self.stack[used[0][0] : used[0][0] + 1].to(dtype)
                return row if used[0][1] == 1 else row * used[0][1]
        index, gamma = self._index(routing)
        shape = (*index.shape, *[1] * (self.stack.dim() - 1))
        return (self.stack[index].to(dtype) * gamma.to(dtype).view(shape)).sum(1)

    def lengths(self, routing: Routing) -> Tensor:
        """int64 [entries]: rows of each entry's tensor, 0 where its tasks have none."""
        index, gamma = self._index(routing)
        return torch.where(gamma != 0, self.length[index], 0).amax(1)

    def _index(self, routing: Routing) -> tuple[Tensor, Tensor]:
        """Rows of the stack and their gammas; a slot without a tensor has a row of zeros or is beyond the stack."""
        index = routing.slots.clamp(0, self.stack.shape[0] - 1)
        return index, torch.where(index == routing.slots, routing.weights, 0.0)


class ParameterDelta:
    """All tasks' deltas of one parameter or buffer of any shape.

    matrices: expert -> `MatrixDelta` (expert None for a parameter that is one matrix, flattened to 2-D)
    raw: finetuned - base;  values: the fine-tune's whole tensor instead of the base's
    added: whole rows beyond the base's (an enlarged vocabulary)
    transposed: the parameter is stored [in, out]; its matrix here is [out, in]
    """

    def __init__(self, shape: torch.Size, device="cpu", transposed=False):
        self.shape, self.device, self.transposed = tuple(shape), torch.device(device), transposed
        self.matrices: dict[int | None, MatrixDelta] = {}
        self.raw, self.values, self.added = Table(device), Table(device), Table(device)

    def matrix(self, expert: int | None = None) -> MatrixDelta:
        """The delta of one expert's matrix, made on first use."""
        if expert not in self.matrices:
            shape = self.shape[1:] if expert is not None else self.shape
            flat = (shape[0], torch.Size(shape[1:]).numel())
            self.matrices[expert] = MatrixDelta(flat[::-1] if self.transposed else flat, self.device, self.transposed)
        return self.matrices[expert]

    @property
    def plain(self) -> MatrixDelta | None:
        """The delta of a parameter that is one matrix."""
        return self.matrices.get(None)

    @property
    def tabled(self) -> bool:
        """Whether a task has more of this parameter than factors."""
        return bool(self.raw.tensors or self.values.tensors or self.added.tensors)

    @property
    def slots(self) -> set[int]:
        """Tasks that change this parameter."""
        tables = set(self.raw.tensors) | set(self.values.tensors) | set(self.added.tensors)
        return tables.union(*[m.slots for m in self.matrices.values()])

    def held(self) -> list[Tensor]:
        """Everything it holds in memory."""
        stacks = [t.stack for t in (self.raw, self.values, self.added) if t.stack is not None]
        return stacks + [t for matrix in self.matrices.values() for t in matrix.held()]

    def add(self, slot: int, piece: Piece) -> None:
        if piece.kind == "factors":
            self.matrix(piece.expert).add(slot, piece.data, piece.row or 0)
        elif piece.kind == "raw":
            self.raw.add(slot, self._whole(slot, piece))
        else:
            (self.values if piece.kind == "value" else self.added).add(slot, piece.data)

    def _whole(self, slot: int, piece: Piece) -> Tensor:
        """A raw delta of the parameter's shape; parts of a fused parameter add up."""
        if piece.expert is None and piece.row is None:
            return piece.data.reshape(self.shape)
        whole = self.raw.tensors.get(slot, torch.zeros(self.shape, dtype=piece.data.dtype)).clone()
        part = whole if piece.expert is None else whole[piece.expert]
        row = piece.row or 0
        part[row : row + piece.data.shape[0]] += piece.data.to(whole.device)
        return whole

    def remove(self, slot: int) -> None:
        for part in (self.raw, self.values, self.added, *self.matrices.values()):
            part.remove(slot)

    def to(self, device) -> None:
        self.device = torch.device(device)
        for part in (self.raw, self.values, self.added, *self.matrices.values()):
            part.to(device)

    def dense(self, base: Tensor, routing: Routing) -> Tensor:
        """The whole tensor for the one mixture of ``routing`` (one entry), in base's dtype.

        base + sum of gamma delta in fp32 or wider, rounded once; a task's whole value takes the place of the base.
        """
        if not base.is_floating_point():
            return self._value(base, routing) if self.values.tensors else base
        wide = torch.float64 if base.dtype == torch.float64 else torch.float32
        full = base.detach().to(wide)
        for expert, matrix in self.matrices.items():
            if expert is not None:
                full = torch.cat([full[:expert], matrix.dense(full[expert], routing)[None], full[expert + 1 :]])
            elif self.transposed:
                full = matrix.dense(full.T, routing).T
            else:
                full = matrix.dense(full.flatten(1), routing).view(full.shape)
        if self.raw.tensors:
            full = full + self.raw.rows(routing, wide)[0]
        full = full.to(base.dtype)
        return self._value(full, routing) if self.values.tensors else full

    def whole(self, base: Tensor, routing: Routing) -> Tensor:
        """As `dense`, with the rows of an enlarged vocabulary."""
        full = self.dense(base, routing)
        if not self.added.tensors:
            return full
        length = int(self.added.lengths(routing)[0])
        return torch.cat([full, self.added.rows(routing, full.dtype)[0, :length]])

    def _value(self, base: Tensor, routing: Routing) -> Tensor:
        """The fine-tune's value where a task has one; a task's own head may have other sizes than the base's."""
        if base.is_floating_point():
            value = self.values.rows(routing, base.dtype)[0]
        else:
            index, _ = self.values._index(routing)
            value = self.values.stack[index[0, 0]].to(base.dtype)
        has = self.values.lengths(routing)[0] > 0
        if value.shape == base.shape:
            return torch.where(has, value, base)
        return value[: int(self.values.lengths(routing)[0])] if has else base
