"""What tasks add to vectors, in the compiled library."""

import struct
from collections.abc import Sequence

import torch
from torch import Tensor

from .load import loaded
from .native import check

MOST = 2  # vectors of a call, as in dts.h
_record = struct.Struct("@PqPq4q" + MOST * "PqPqqPq").pack
_NONE = (0,) * 7


def add_vectors(given: Sequence[tuple[Tensor, Tensor]], slots: Tensor, weights: Tensor) -> list[Tensor]:
    """base [n] + each entry's sum of gamma stack[slot] of each (base, stack [tasks, n]): float32 [entries, n].

    slots (int32) and weights (float32) are [entries, places]; all are contiguous, which the ops have seen to; C looks
    at all sizes.
    """
    entries, places = slots.shape
    n, vectors = given[0][0].numel(), list[int]()
    size = entries * n
    made = torch.empty((len(given), entries, n), dtype=torch.float32)  # one: each tensor costs as much as its sums
    out = made.data_ptr()
    for base, stack in given:
        vectors += (
            base.data_ptr(),
            base.numel(),
            stack.data_ptr(),
            stack.numel(),
            stack.shape[0],
            out,
            size,
        )
        out += 4 * size
    for _ in range(len(given), MOST):
        vectors += _NONE
    code = loaded().dts_add_vectors(
        _record(
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
