"""Biases, norms and heads in few bits, where bytes are asked for.

Beside what the factors of the same adapter lose, rounding these is next to nothing, and the bytes buy components that
lose much more.  *Measured* on three tasks of MiniLM (benchmarks/quality/FINDINGS.md).
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dts.adapter.entries import Entry
from dts.adapter.grid import rounded_to
from dts.sums import energy, squared_difference

SHORT = 16  # elements: below, scales cost about as much as they save
FEW = 1 / 24  # of an adapter's bytes, where vectors take so much in 8 bits: they take 3 then
SOME = 1 / 128  # where they take so much: 4
HEADS = 1 / 512  # of an adapter's bytes, where 8 bits save so much on heads: they take them then


@dataclass(frozen=True)
class Rounding:
    """Bits of a number, None for all it has: of ``vectors`` (biases, norms) and of ``heads`` that the base lacks."""

    vectors: int | None = None
    heads: int | None = None


EXACT = Rounding()
ASKED = {"exact": EXACT, "8bit": Rounding(8, 8), "4bit": Rounding(4, 8), "3bit": Rounding(3, 8)}


def rounding_for(nbytes: float, vectors: int, heads: int) -> Rounding:
    """What an adapter of so many bytes takes.  vectors, heads: elements of those that can be rounded."""
    bits = 3 if vectors > FEW * nbytes else 4 if vectors > SOME * nbytes else 8
    return Rounding(bits, 8 if 3 * heads > HEADS * nbytes else None)


def is_vector(shape: tuple[int, ...], dtype: torch.dtype, own: bool) -> bool:
    """Can a difference of this shape be rounded?  own: the base has none."""
    return not own and dtype.is_floating_point and len(shape) == 1 and shape[0] >= SHORT


def is_head(shape: tuple[int, ...], dtype: torch.dtype, own: bool) -> bool:
    """Is it a matrix that only the fine-tune has?"""
    return own and dtype.is_floating_point and len(shape) > 1 and torch.Size(shape).numel() >= SHORT


def elements(entries: list[tuple[tuple[int, ...], torch.dtype, bool]]) -> tuple[int, int]:
    """(of vectors, of heads) among tensors of these shapes and dtypes, each the fine-tune's own or not."""
    found = [sum(torch.Size(one[0]).numel() for one in entries if fits(*one)) for fits in (is_vector, is_head)]
    return found[0], found[1]


def in_few_bits(entry: Entry, exact: Tensor, rounding: Rounding, further: bool = False) -> Entry:
    """The entry of a vector or a head, rounded; every other one, and what no scale can hold, as it is.

    further: also of what is in few bits already, but more than these; how far it is from ``exact`` then is not known.

    exact: what the entry is of, the difference or the fine-tune's own value.
    """
    fitting = {"delta": (is_vector, rounding.vectors), "value": (is_head, rounding.heads)}
    if entry.kind not in fitting:
        return entry
    fits, bits = fitting[entry.kind]
    if (
        bits is None
        or entry.grid is not None
        and not (further and entry.grid.bits > bits)
        or not fits(entry.shape, entry.dtype, entry.task_only)
        or entry.scale is not None
        and bits == 8
    ):
        return entry
    whole = energy(exact)
    grid = rounded_to(exact, bits) if whole else None
    if grid is None:
        return entry
    error = None
    if entry.grid is None:
        error = squared_difference(exact.double(), grid.values(torch.float64)) / whole + (entry.squared_error or 0.0)
    return replace(entry, tensor=None, scale=None, grid=grid, squared_error=error)
