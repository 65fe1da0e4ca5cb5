"""Sampled elements of a matrix: 2-bit values at places that follow from a seed.

With stride G, a row of [m, n] keeps one element of every G columns.  Row i and group g of columns, b = i div G:

    column(i, g) = G g + (i + shift(b, g)) mod G,       shift(b, g) = (h(b, g) >> 16) G >> 16
    h(b, g) = mix(seed + 0x9E3779B1 b + 0x85EBCA77 g)   modulo 2^32
    mix(h):  h ^= h >> 16;  h *= 0x85EBCA6B;  h ^= h >> 13;  h *= 0xC2B2AE35;  h ^= h >> 16

so in every block of G rows and G columns each row and each column has one element, on a turned diagonal, and every
element is as likely as any other.  A code's value (`layout.VALUES`) times ``scale`` stands at its place, zeros
elsewhere.  Columns from n on (the last group may be shorter) do not exist: their codes mean nothing.
"""

from ctypes import c_float
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .layout import ceil_div, packed_width
from .reference import decode

STRIDES = range(1, 1 << 12)  # a shift's odds are even to stride / 2^16


@dataclass(frozen=True)
class Samples:
    """Elements of a matrix [m, n].

    codes: uint8 [m, ceil(groups / 4)], four groups a byte as ranks in `layout`;  scale: of all values;
    seed: 0 <= seed < 2^32;  shape: (m, n).
    """

    codes: Tensor
    scale: float
    stride: int
    seed: int
    shape: tuple[int, int]

    def __post_init__(self):
        wrong = []
        if self.stride not in STRIDES:
            wrong.append(f"stride must be 1 to {STRIDES[-1]}, not {self.stride}")
        if not 0 <= self.seed < 1 << 32:
            wrong.append(f"seed must be 0 to 2^32 - 1, not {self.seed}")
        if not wrong:
            size = [self.shape[0], packed_width(self.groups)]
            if self.codes.dtype != torch.uint8 or list(self.codes.shape) != size:
                wrong.append(f"codes must be uint8 {size}, not {self.codes.dtype} {list(self.codes.shape)}")
        if wrong:
            raise ValueError("samples do not fit together: " + "; ".join(wrong))

    @property
    def groups(self) -> int:
        """Elements of a row."""
        return groups_of(self.shape[1], self.stride)

    @property
    def nbytes(self) -> int:
        return self.codes.numel()

    def times(self, factor: float) -> "Samples":
        """A multiple, whose scale is a float32, which is stored of it."""
        return replace(self, scale=c_float(factor * self.scale).value)

    def to(self, device) -> "Samples":
        return replace(self, codes=self.codes.to(device))


def groups_of(n: int, stride: int) -> int:
    return ceil_div(n, stride)


def seed_at(seed, block, group):
    """The seed of the elements of a matrix from that block of rows and that group of columns on, as of one that begins
    there: ints, or int64 tensors."""
    return (seed + 0x9E3779B1 * block + 0x85EBCA77 * group) & 0xFFFFFFFF


def columns(shape: tuple[int, int], stride: int, seed: int, device=None, rows: Tensor | None = None) -> Tensor:
    """int64 [m, groups]: the column of every element; from n on there is none.  rows: int64, only these."""
    rows = torch.arange(shape[0], device=device) if rows is None else rows
    group = torch.arange(groups_of(shape[1], stride), device=rows.device)
    block = rows.div(stride, rounding_mode="floor")
    h = seed_at(seed, block[:, None], group)
    for bits, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        h = h ^ h >> bits
        h = (h & 0xFFFF) * factor + (((h >> 16) * factor & 0xFFFF) << 16) & 0xFFFFFFFF  # int64 has no room for more
    h = h ^ h >> 16
    shift = (h >> 16) * stride >> 16
    return group * stride + (rows[:, None] + shift) % stride


def dense(samples: Samples, dtype=torch.float32, rows: Tensor | None = None) -> Tensor:
    """The matrix: dtype [m, n].  rows: int64, only these."""
    codes = samples.codes if rows is None else samples.codes[rows]
    values = decode(codes, samples.groups, dtype=dtype)
    at = columns(samples.shape, samples.stride, samples.seed, codes.device, rows)
    out = torch.zeros(codes.shape[0], samples.groups * samples.stride, dtype=dtype, device=codes.device)
    out.scatter_(1, at, values * torch.tensor(samples.scale, dtype=torch.float32, device=codes.device).to(dtype))
    return out[:, : samples.shape[1]]
