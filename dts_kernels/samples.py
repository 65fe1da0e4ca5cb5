"""Sampled elements of a matrix: 2-bit values at places that follow from a seed.

With stride G, a row of [m, n] keeps one element of every G columns.  Row i and group g of columns, b = i div G:

    column(i, g) = G g + (i + shift(b, g)) mod G,       shift(b, g) = (h(b, g) >> 16) G >> 16
    h(b, g) = mix(seed + 0x9E3779B1 b + 0x85EBCA77 g)   modulo 2^32
    mix(h):  h ^= h >> 16;  h *= 0x85EBCA6B;  h ^= h >> 13;  h *= 0xC2B2AE35;  h ^= h >> 16

so in every block of G rows and G columns each row and each column has one element, on a turned diagonal, and every
element is as likely as any other.  A code's value (`layout.VALUES`) times ``scale`` stands at its place, zeros
elsewhere.  Columns from n on (the last group may be shorter) do not exist: their codes mean nothing.

**Thinned samples.**  A *share* (c, w) keeps c groups of every w, so that fewer elements of a sample are a sample too.
Element t of a row, u = t div c and j = t mod c, is the one of group

    g  =  w u + (((w >> j) mod w) xor (turn mod w)),      turn = h(b, -1 - (w u div 64)) >> 26

where -1 - x is modulo 2^32.  c is 1 or 3, w a power of two up to 64, and 3 only where w is 4 or more.  Of a window of w
groups the first is kept, then the one half a window on, then the one a quarter on, all turned by the same bits, for a
block of rows at a time.  So the groups of a smaller share are among those of a larger one, and again each element is as
likely as any other.  Of the share (1, 1), g is t.
"""

from ctypes import c_float
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .layout import alone, ceil_div, packed_width
from .reference import decode

STRIDES = range(1, 1 << 12)  # a shift's odds are even to stride / 2^16
WINDOW = 64  # groups that are turned by the same bits
ALL = 1, 1  # the share of a sample that is not thinned
SHARES = sorted(  # the largest first
    [(1, 1 << k) for k in range(7)] + [(3, 1 << k) for k in range(2, 7)], key=lambda share: -share[0] / share[1]
)


@dataclass(frozen=True, slots=True)
class Samples:
    """Elements of a matrix [m, n].

    codes: uint8 [m, ceil(elements / 4)], four elements of a row a byte as ranks in `layout`;  scale: of all values;
    seed: 0 <= seed < 2^32;  shape: (m, n);  share: of the groups, one of `SHARES`.
    """

    codes: Tensor
    scale: float
    stride: int
    seed: int
    shape: tuple[int, int]
    share: tuple[int, int] = ALL

    def __post_init__(self):
        wrong = []
        if self.stride not in STRIDES:
            wrong.append(f"stride must be 1 to {STRIDES[-1]}, not {self.stride}")
        if not 0 <= self.seed < 1 << 32:
            wrong.append(f"seed must be 0 to 2^32 - 1, not {self.seed}")
        if self.share not in SHARES:
            wrong.append(f"share must be one of {', '.join(map(str, SHARES))}, not {self.share}")
        if not wrong:
            size = [self.shape[0], packed_width(self.elements)]
            if self.codes.dtype != torch.uint8 or list(self.codes.shape) != size:
                wrong.append(f"codes must be uint8 {size}, not {self.codes.dtype} {list(self.codes.shape)}")
        if wrong:
            raise ValueError("samples do not fit together: " + "; ".join(wrong))

    def __reduce__(self):
        """As of `PackedFactors`."""
        return Samples, (alone(self.codes), self.scale, self.stride, self.seed, self.shape, self.share)

    @property
    def elements(self) -> int:
        """Elements of a row."""
        return elements_of(self.shape[1], self.stride, self.share)

    @property
    def is_thinned(self) -> bool:
        return self.share != ALL

    @property
    def of_how_many(self) -> float:
        """Elements of the matrix for each that is kept."""
        kept, window = self.share
        return self.stride * window / kept

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


def elements_of(n: int, stride: int, share: tuple[int, int] = ALL) -> int:
    """Elements of a row of n columns, those of groups that are not there among them."""
    kept, window = share
    return kept * ceil_div(groups_of(n, stride), window)


def columns(
    shape: tuple[int, int],
    stride: int,
    seed: int,
    device=None,
    rows: Tensor | None = None,
    share: tuple[int, int] = ALL,
) -> Tensor:
    """int64 [m, elements]: the column of every element; from n on there is none.  rows: int64, only these."""
    rows = torch.arange(shape[0], device=device) if rows is None else rows
    block = rows.div(stride, rounding_mode="floor")
    group = groups(shape[1], stride, seed, block, share)
    shift = (hashed(seed, block[:, None], group) >> 16) * stride >> 16
    return group * stride + (rows[:, None] + shift) % stride


def groups(n: int, stride: int, seed: int, block: Tensor, share: tuple[int, int] = ALL) -> Tensor:
    """int64 [len(block), elements], or of one row where all blocks have the same: the group of every element.

    block: int64, of each row that is asked for.
    """
    kept, window = share
    t = torch.arange(elements_of(n, stride, share), device=block.device)
    if share == ALL:
        return t[None]
    first, j = t.div(kept, rounding_mode="floor") * window, t % kept
    turn = hashed(seed, block[:, None], -1 - first.div(WINDOW, rounding_mode="floor")) >> 26
    return first + ((window >> j) % window ^ turn % window)


def hashed(seed: int, block: Tensor, group: Tensor) -> Tensor:
    """h above, int64."""
    h = seed_at(seed, block, group)
    for bits, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        h = h ^ h >> bits
        h = (h & 0xFFFF) * factor + (((h >> 16) * factor & 0xFFFF) << 16) & 0xFFFFFFFF  # int64 has no room for more
    return h ^ h >> 16


def dense(samples: Samples, dtype=torch.float32, rows: Tensor | None = None) -> Tensor:
    """The matrix: dtype [m, n].  rows: int64, only these."""
    codes = samples.codes if rows is None else samples.codes[rows]
    values = decode(codes, samples.elements, dtype=dtype)
    at = columns(samples.shape, samples.stride, samples.seed, codes.device, rows, samples.share)
    width = (samples.elements // samples.share[0]) * samples.share[1] * samples.stride
    out = torch.zeros(codes.shape[0], width, dtype=dtype, device=codes.device)
    out.scatter_(1, at, values * torch.tensor(samples.scale, dtype=torch.float32, device=codes.device).to(dtype))
    return out[:, : samples.shape[1]]
