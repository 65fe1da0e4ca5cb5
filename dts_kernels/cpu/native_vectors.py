"""What tasks add to vectors, in the compiled library."""

import struct
from collections.abc import Sequence

import torch
from torch import Tensor

from ..rounded import Addends, RoundedVectors
from .load import loaded, name_of
from .native import check

MOST = 2  # vectors of a call, as in dts.h
_record = struct.Struct("@PPqPq4q" + MOST * "PqPqPqPq").pack
_NONE = (0,) * 8


def add_vectors(given: Sequence[tuple[Tensor, Addends]], slots: Tensor, weights: Tensor) -> list[Tensor]:
    """base [n] + each entry's sum of gamma stack[slot] of each (base, stack [tasks, n]): float32 [entries, n].

    slots (int32) and weights (float32) are [entries, places]; all are contiguous, which the ops have seen to; C looks
    at all sizes.
    """
    entries, places = slots.shape
    n, vectors = given[0][0].numel(), list[int]()
    size = entries * n
    # one: each tensor costs as much as its sums
    made = torch.empty((len(given), entries, n), dtype=torch.float32, device="cpu")
    out = made.data_ptr()
    for base, stack in given:
        place = (0, 0, stack.pointer) if isinstance(stack, RoundedVectors) else (stack.data_ptr(), stack.numel(), 0)
        vectors += (base.data_ptr(), base.numel(), *place, stack.shape[0], out, size)
        out += 4 * size
    for _ in range(len(given), MOST):
        vectors += _NONE
    code = loaded().dts_add_vectors(
        _record(
            name_of(None),
            slots.data_ptr(),
            entries * places,
            weights.data_ptr(),
            weights.numel(),
            entries,
            places,
            n,
            len(given),
            *vectors,
        )
    )
    if code:
        check(code, "add_vectors")
    return list(made.unbind(0))
