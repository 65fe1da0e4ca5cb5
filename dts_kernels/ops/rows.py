"""Rows of the dense delta: what an embedding looks up."""

import torch
from torch import Tensor

from .. import check, dispatch
from ..bank import Bank
from ..cpu import native
from ..operands import FactorOperands, schema
from ..routing import Routing
from .library import direct, op
from .run import chosen, fit


def delta_embedding(ids: Tensor, bank: Bank, routing: Routing, dtype: torch.dtype = torch.float32) -> Tensor:
    """Rows of the dense delta of each row's tasks: sum of gamma U[id] diag(sigma) V.

    ids: int64 or int32 [...], rows of the matrix, -1 for none (zeros).  Returns ``dtype`` [..., bank.in_features].
    Ids that no row has raise IndexError.  On a GPU this reads ids and routing on the host: right, but it waits for the
    device and cannot be captured in a CUDA graph.
    """
    check.ids(ids, routing.slots, routing.weights)
    return torch.ops.dts.delta_embedding(ids, *bank.new_operands(routing), bank.in_features, dtype)


def add_embedding(ids: Tensor, y: Tensor, parts: "EmbeddingParts", routing: Routing) -> Tensor:
    """y + what `delta_embedding` gives, for banks that each hold some rows of one matrix.

    ids: int64 or int32 [...], rows of the whole matrix, -1 for none; y: [..., n].  May write into y, which is returned.
    """
    slots, weights = routing.slots, routing.weights
    plain = check.ids(ids, slots, weights, y, parts.columns) and parts.native and direct(ids, y)
    if plain and y.dtype in native.DTYPES and y.is_contiguous() and not (y.is_neg() or weights.is_neg()):
        tasks = parts.tasks()
        if tasks is not None:
            dispatch.ran["delta_embedding", "native"] += 1
            return native.embedding(ids, y, tasks, slots, weights, parts.rows, y.shape[-1], y.dtype, in_place=True)
    for bank, lookup in parts.banks:
        y = y + delta_embedding(row_in(lookup, ids), bank, routing, y.dtype)
    return y


class EmbeddingParts:
    """Banks of one matrix [rows, n] for `add_embedding`, no slot in two of them.

    banks: each with int32 [rows], the bank's row of every row of the matrix (-1: none), or None where it has all.
    """

    def __init__(self, banks: list[tuple[Bank, Tensor | None]], rows: int):
        self.banks, self.rows = banks, rows
        columns = {bank.in_features for bank, _ in banks}
        if len(columns) > 1:
            raise ValueError(f"banks of one matrix must have its columns, not {sorted(columns)}")
        self.columns = min(columns, default=None)
        slots = [slot for bank, _ in banks for slot in bank.slots]
        self.native = all(bank.layout == "disk" and bank.device.type == "cpu" for bank, _ in banks)
        self.native &= len(slots) == len(set(slots))
        self._tasks: native.Tasks | None = None

    def tasks(self) -> native.Tasks | None:
        """What C reads; None without the library or where a task has levels."""
        if self._tasks is None:
            if not native.variant():
                return None
            self._tasks = native.Tasks.join([(native.Tasks.of(b.packed, b.table), lookup) for b, lookup in self.banks])
        return None if self._tasks.levels else self._tasks


def row_in(lookup: Tensor | None, ids: Tensor) -> Tensor:
    """A bank's rows for those of the whole matrix: ids where it has all of them, else int64 with -1 for none."""
    return ids if lookup is None else torch.where(ids < 0, -1, lookup[ids.clamp(min=0).long()].long())


@op(f"delta_embedding(Tensor ids, {schema(FactorOperands)}, int in_features, ScalarType dtype) -> Tensor")
def _delta_embedding_op(ids, *rest):
    *flat, in_features, dtype = rest
    operands = FactorOperands(*flat)
    check.ids(ids, operands.slots, operands.weights)
    if dtype not in check.FLOATS:
        raise ValueError(f"rows must be floating point of 16, 32 or 64 bits, not {dtype}")
    fit(ids, operands, operands.out_features, in_features)
    ids, slots, weights = (check.flat(t, ids.device) for t in (ids.to(torch.int64), operands.slots, operands.weights))
    operands = operands._replace(slots=slots, weights=weights)
    if ids.numel() and (largest := int(ids.max())) >= operands.out_features:
        raise IndexError(f"an id of {largest} is beyond the matrix's {operands.out_features} rows")
    empty = operands.max_rank == 0
    path = chosen("delta_embedding", ids, dtype, ids.numel(), slots.shape, operands.layout, empty=empty)
    return path(ids, operands, in_features, dtype)


@torch.library.register_fake("dts::delta_embedding")
def _(ids, *rest):
    *_, in_features, dtype = rest
    return ids.new_empty((*ids.shape, in_features), dtype=dtype)
