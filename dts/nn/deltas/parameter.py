"""All tasks' deltas of one parameter or buffer."""

from __future__ import annotations

import torch
from torch import Tensor

from dts.nn.deltas.exact import Exact
from dts.nn.deltas.held import Held, as_op, in_program
from dts.nn.deltas.matrix import MatrixDelta
from dts.nn.deltas.piece import Piece
from dts.nn.deltas.table import Table
from dts.nn.routing import tracing
from dts.sites import has_codes, numbers
from dts_kernels import Routing
from dts_kernels.rounded import RoundedVector


def _mixture(routing: Routing) -> list[tuple[int, float]]:
    """(slot, gamma) of each task that the first row of a routing uses."""
    found = zip(routing.slots[0].tolist(), routing.weights[0].tolist())
    return [(slot, weight) for slot, weight in found if slot >= 0 and weight != 0]


class ParameterDelta(Held):
    """All tasks' deltas of one parameter or buffer of any shape.

    matrices: expert -> `MatrixDelta` (expert None for a parameter that is one matrix, flattened to 2-D)
    raw: finetuned - base;  values: the fine-tune's whole tensor instead of the base's
    exact: slot -> the fine-tune's values bit for bit, of the parameter or of parts of it
    added: whole rows beyond the base's (an enlarged vocabulary)
    transposed: the parameter is stored [in, out]; its matrix here is [out, in]
    """

    def __init__(self, shape: tuple[int, ...], device: torch.device | str = "cpu", transposed: bool = False):
        super().__init__()
        self.shape, self.device, self.transposed = tuple(shape), torch.device(device), transposed
        self.matrices: dict[int | None, MatrixDelta] = {}
        self.raw, self.values, self.added = Table(device, stays=True), Table(device), Table(device)
        self.exact: dict[int, list[Exact]] = {}

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
        return self.raw.filled or self.values.filled or self.added.filled

    @property
    def slots(self) -> set[int]:
        """Tasks that change this parameter."""
        tables = set(self.raw.slots) | set(self.values.slots) | set(self.added.slots) | set(self.exact)
        return tables.union(*[m.slots for m in self.matrices.values()])

    def held(self) -> list[Tensor]:
        """Everything it holds in memory."""
        stacks = [t for table in (self.raw, self.values, self.added) for t in table.held()]
        stacks += [t for own in self.exact.values() for one in own for t in one.held()]
        return stacks + [t for matrix in self.matrices.values() for t in matrix.held()]

    def add(self, slot: int, piece: Piece) -> None:
        if piece.kind == "factors":
            self.matrix(piece.expert).add(slot, piece.factors, piece.row or 0)
        elif piece.kind == "shard":
            self.matrix(piece.expert).add_shard(slot, piece.shard, piece.row or 0)
        elif piece.kind == "raw":
            self.raw.add(slot, self._whole(slot, piece))
        elif piece.kind == "exact":
            self.exact[slot] = [*self.exact.get(slot, ()), piece.exact.to(self.device)]
        else:
            (self.values if piece.kind == "value" else self.added).add(slot, piece.tensor)

    def _whole(self, slot: int, piece: Piece) -> Tensor | RoundedVector:
        """A raw delta of the parameter's shape; parts of a fused parameter add up."""
        if piece.expert is None and piece.row is None:
            if isinstance(piece.data, RoundedVector) and self.shape == (piece.data.count,):
                return piece.data
            return piece.tensor.reshape(self.shape)
        before = self.raw.tensors.get(slot)
        whole = torch.zeros(self.shape, dtype=piece.tensor.dtype) if before is None else before.clone()
        part = whole if piece.expert is None else whole[piece.expert]
        row = piece.row or 0
        part[row : row + piece.tensor.shape[0]] += piece.tensor.to(whole.device)
        return whole

    def _stores(self) -> list[Table | MatrixDelta]:
        return [self.raw, self.values, self.added, *self.matrices.values()]

    def remove(self, slot: int) -> None:
        self.exact.pop(slot, None)
        for part in self._stores():
            part.remove(slot)

    def to(self, device: torch.device | str) -> None:
        self.device = torch.device(device)
        self.exact = {slot: [one.to(device) for one in own] for slot, own in self.exact.items()}
        for part in self._stores():
            part.to(device)

    def dense(self, base: Tensor, routing: Routing) -> Tensor:
        """The whole tensor for the one mixture of ``routing`` (one row), in base's dtype.

        base + sum of gamma delta in fp32 or wider, rounded once; a task's whole value takes the place of the base.  One
        task alone that is exact gives its bits.  Raises TypeError for codes that only their module can read.
        """
        if in_program(base) and base.is_floating_point() and not self.values.filled:
            return as_op(self, "_dense_in_program", [base], routing, base.shape, base.dtype)
        weights = self._exact_weights(routing) if self.exact else {}
        if weights:
            slot, weight = next(iter(weights.items()))
            if not base.is_floating_point() or weight == 1 and self._alone(routing):
                return self._bits(base, slot)
        if has_codes(base) and (self.matrices or self.raw.filled):
            base = numbers(base)
        if not base.is_floating_point():
            return self._value(base, routing) if self.values.filled else base
        wide = torch.float64 if base.dtype == torch.float64 else torch.float32
        full = base.detach().to(wide)
        if any(expert is not None for expert in self.matrices) and base.dtype == wide:
            full = full.clone()  # it is the base itself: once for all experts, which are then written in place
        for expert, matrix in self.matrices.items():
            if expert is not None:
                full[expert] = matrix.dense(full[expert], routing)
            elif self.transposed:
                full = matrix.dense(full.T, routing).T
            else:
                full = matrix.dense(full.flatten(1), routing).view(full.shape)
        if self.raw.filled:
            full = full + self.raw.rows(routing, wide)[0]
        for slot, weight in weights.items():
            full = full + weight * (self._bits(base, slot).to(wide) - base.to(wide))
        full = full.to(base.dtype)
        return self._value(full, routing) if self.values.filled else full

    def _dense_in_program(self, base: Tensor, routing: Routing, dtype: torch.dtype) -> Tensor:
        return self.dense(base, routing)

    def _exact_weights(self, routing: Routing) -> dict[int, float]:
        """slot -> gamma of the tasks of the one mixture that are exact here."""
        if tracing():
            raise NotImplementedError(
                "a task that keeps every bit (method exact) cannot be a part of a program, in which another task is "
                "another number: merge it (merge_and_unload, dts apply) before torch.compile or torch.export"
            )
        return {slot: weight for slot, weight in _mixture(routing) if slot in self.exact}

    def _alone(self, routing: Routing) -> bool:
        """Is the one mixture a single task, of which nothing but exact values is stored here?"""
        used = [slot for slot, _ in _mixture(routing)]
        others = set(self.raw.slots).union(*[m.slots for m in self.matrices.values()])
        return len(used) == 1 and used[0] not in others

    def _bits(self, base: Tensor, slot: int) -> Tensor:
        for one in self.exact[slot]:
            base = one.written(base)
        return base

    def whole(self, base: Tensor, routing: Routing) -> Tensor:
        """As `dense`, with the rows of an enlarged vocabulary."""
        full = self.dense(base, routing)
        if not self.added.filled:
            return full
        length = int(self.added.lengths(routing)[0])
        return torch.cat([full, self.added.rows(routing, full.dtype)[0, :length]])

    def _value(self, base: Tensor, routing: Routing) -> Tensor:
        """The fine-tune's value where a task has one; a task's own head may have other sizes than the base's."""
        if base.is_floating_point():
            value = self.values.rows(routing, base.dtype)[0]
        else:
            index, _ = self.values.index(routing)
            value = self.values.stack[index[0, 0]].to(base.dtype)
        has = self.values.lengths(routing)[0] > 0
        if value.shape == base.shape and (in_program(base) or self.values.even):
            return torch.where(has, value, base)  # without a look at which it is, which a graph could not follow
        return value[: int(self.values.lengths(routing)[0])] if has else base
