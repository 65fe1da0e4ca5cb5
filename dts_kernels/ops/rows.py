"""Rows of the dense delta: what an embedding looks up."""

import torch
from torch import Tensor

from .. import check, dispatch
from ..bank import Bank
from ..embedding_parts import EmbeddingParts
from ..operands import FactorOperands, schema
from ..paths import PATHS
from ..routing import Routing
from .library import direct, op
from .run import choice, chosen, fit


def delta_embedding(ids: Tensor, bank: Bank, routing: Routing, dtype: torch.dtype = torch.float32) -> Tensor:
    """Rows of the dense delta of each row's tasks: sum of gamma U[id] diag(sigma) V.

    ids: int64 or int32 [...], rows of the matrix, -1 for none (zeros).  Returns ``dtype`` [..., bank.in_features].
    Ids that no row has raise IndexError on a CPU, and give NaN on a GPU, which nothing waits for to know.
    """
    check.ids(ids, routing.slots, routing.weights)
    return torch.ops.dts.delta_embedding(ids, *bank.new_operands(routing), bank.in_features, dtype)


def add_embedding(ids: Tensor, y: Tensor, parts: EmbeddingParts, routing: Routing) -> Tensor:
    """y + what `delta_embedding` gives, for banks that each hold some rows of one matrix.

    ids: int64 or int32 [...], rows of the whole matrix, -1 for none; y: [..., n].  May write into y, which is returned.
    """
    slots, weights = routing.slots, routing.weights
    columns = parts.columns if parts.banks else None
    plain = check.ids(ids, slots, weights, y, columns) and parts.joined and direct(ids, y)
    if plain and y.is_contiguous() and not (y.is_neg() or weights.is_neg()):
        dtype = y.dtype
        found = parts.chosen.get(dtype)
        if found is None:  # of nothing else that differs from call to call
            found = parts.chosen[dtype] = choice("add_embedding", "cpu", dtype, 1, 1, 1, "disk", False, False, False)
        key, path = found
        dispatch.ran[key] += 1
        return path(ids, y, parts, routing)
    if parts.packed and direct(ids, y) and check.launched(ids, y, slots, weights):
        return _add_packed(ids, y, parts, routing)
    return PATHS["add_embedding"]["reference"](ids, y, parts, routing)


def _add_packed(ids: Tensor, y: Tensor, parts: EmbeddingParts, routing: Routing) -> Tensor:
    """`add_embedding` of banks of kernel words, where nothing is between ids and y and a kernel."""
    for bank, _ in parts.banks:
        fit(ids, bank.operands(routing), bank.out_features, bank.in_features)
    _refuse_unknown(ids, parts.rows)
    empty = all(bank.max_rank == 0 for bank, _ in parts.banks)
    path = chosen("add_embedding", ids, y.dtype, ids.numel(), routing.slots.shape, "planar", empty=empty)
    return path(ids, y, parts, routing)


def _refuse_unknown(ids: Tensor, rows: int) -> None:
    """Raise IndexError for ids that no row has; not on a GPU, where to look would be to wait."""
    if not ids.is_cuda and ids.numel() and (largest := int(ids.max())) >= rows:
        raise IndexError(f"an id of {largest} is beyond the matrix's {rows} rows")


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
    _refuse_unknown(ids, operands.out_features)
    empty = operands.max_rank == 0
    path = chosen("delta_embedding", ids, dtype, ids.numel(), slots.shape, operands.layout, empty=empty)
    return path(ids, operands, in_features, dtype)


@torch.library.register_fake("dts::delta_embedding")
def _(ids, *rest):
    *_, in_features, dtype = rest
    return ids.new_empty((*ids.shape, in_features), dtype=dtype)
