"""The dense delta itself, added to a base."""

import torch
from torch import Tensor

from .. import check, contents
from ..bank import Bank
from ..operands import DenseOperands, schema
from .library import op
from .run import chosen


def reconstruct(
    bank: Bank, gamma: dict[int, float] | Tensor, base: Tensor | None = None, dtype: torch.dtype | None = None
) -> Tensor:
    """base + sum_s gamma_s U_s diag(sigma_s) V_s, dense.

    gamma: slot -> weight, or float32 [slots]; base: [out_features, in_features] or None for zeros.
    Returns [out_features, in_features] in ``dtype`` (default: base's, else float32).
    """
    if isinstance(gamma, dict):
        given = gamma
        unknown = [s for s in given if s not in bank.slots]
        if unknown:
            raise KeyError(f"no task in slot {unknown}; the bank's slots are {bank.slots}")
        gamma = torch.tensor([given.get(s, 0.0) for s in range(bank.room)], device=bank.device)
    dtype = dtype or (base.dtype if base is not None else torch.float32)
    return torch.ops.dts.reconstruct(*bank.dense_operands(gamma, base), dtype)


@op(f"reconstruct({schema(DenseOperands)}, ScalarType dtype) -> Tensor")
def _reconstruct_op(*rest):
    *flat, dtype = rest
    packed, table, gamma, base, m, n, max_rank, layout = operands = DenseOperands(*flat)
    check.no_forward_mode()
    if dtype not in check.FLOATS:
        raise ValueError(f"a dense matrix must be floating point of 16, 32 or 64 bits, not {dtype}")
    gamma = check.gamma(gamma, base, (m, n), table.shape[0])
    base = None if base is None else check.real(base)
    contents.of(packed, table).fit(layout, (m, n), max_rank, table, None if base is None else base.device)
    path = chosen("reconstruct", packed[0] if packed else table, dtype, m, (1, 1), layout, empty=max_rank == 0)
    return path(operands._replace(gamma=gamma, base=base), dtype)


@torch.library.register_fake("dts::reconstruct")
def _(*rest):
    *flat, dtype = rest
    operands = DenseOperands(*flat)
    like = operands.base if operands.base is not None else operands.packed[0] if operands.packed else operands.gamma
    return like.new_empty((operands.out_features, operands.in_features), dtype=dtype)
