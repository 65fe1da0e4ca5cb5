"""Biases and norms in 8 bits.

A rounded element errs by at most a 254th of the vector's largest one: next to nothing beside what the factors of the
same adapter lose, at a quarter of float32's bytes, which buy components that lose much more.
"""

from dataclasses import replace

import torch
from torch import Tensor

from dts.adapter.entries import Entry
from dts.adapter.text import number
from dts.sums import energy, squared_difference
from dts.values import LARGEST

SHORT = 16  # elements: below, a scale costs about as much as it saves


def eight_bit(entry: Entry, delta: Tensor) -> Entry:
    """The entry of a floating point vector with its difference as int8 * scale, scale = max|delta| / 127.

    delta: [n], finetuned - base.  What is no such vector, is short, or has no scale that
    may be stored (NaN, infinite or huge elements) stays as it is.
    """
    if entry.task_only or not entry.dtype.is_floating_point or len(entry.shape) != 1 or entry.shape[0] < SHORT:
        return entry
    delta = delta.double()
    scale = number(delta.abs().max().item() / 127)
    if not torch.finfo(torch.float32).tiny <= scale <= LARGEST:  # which a NaN is not either
        return entry
    rounded = (delta / scale).round().clamp(-127, 127)
    error = squared_difference(delta, rounded * scale) / energy(delta)
    return replace(entry, kind="delta", tensor=rounded.to(torch.int8), scale=scale, squared_error=error)
