"""Sampled elements of a matrix: 2-bit values at places that follow from a seed, and all tasks' of one layer.

With stride G, a row of [m, n] keeps one element of every G columns.  Row i and group g of columns, b = i div G:

    column(i, g) = G g + (i + shift(b, g)) mod G,       shift(b, g) = (h(b, g) >> 16) G >> 16
    h(b, g) = mix(seed + 0x9E3779B1 b + 0x85EBCA77 g)   modulo 2^32
    mix(h):  h ^= h >> 16;  h *= 0x85EBCA6B;  h ^= h >> 13;  h *= 0xC2B2AE35;  h ^= h >> 16

so in every block of G rows and G columns each row and each column has one element, on a turned diagonal, and every
element is as likely as any other.  A code's value (`layout.VALUES`) times ``scale`` stands at its place, zeros
elsewhere.  Columns from n on (the last group may be shorter) do not exist: their codes mean nothing.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from .bank import EAGER
from .layout import VALUES, packed_width, unpack

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

    def to(self, device) -> "Samples":
        return Samples(self.codes.to(device), self.scale, self.stride, self.seed, self.shape)


def groups_of(n: int, stride: int) -> int:
    return -(-n // stride)


def columns(shape: tuple[int, int], stride: int, seed: int, device=None, rows: Tensor | None = None) -> Tensor:
    """int64 [m, groups]: the column of every element; from n on there is none.  rows: int64, only these."""
    rows = torch.arange(shape[0], device=device) if rows is None else rows
    group = torch.arange(groups_of(shape[1], stride), device=rows.device)
    block = rows.div(stride, rounding_mode="floor")
    h = (seed + 0x9E3779B1 * block[:, None] + 0x85EBCA77 * group) & 0xFFFFFFFF
    for bits, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        h = h ^ h >> bits
        h = (h & 0xFFFF) * factor + (((h >> 16) * factor & 0xFFFF) << 16) & 0xFFFFFFFF  # int64 has no room for more
    h = h ^ h >> 16
    shift = (h >> 16) * stride >> 16
    return group * stride + (rows[:, None] + shift) % stride


def dense(samples: Samples, dtype=torch.float32, rows: Tensor | None = None) -> Tensor:
    """The matrix: dtype [m, n].  rows: int64, only these."""
    codes = samples.codes if rows is None else samples.codes[rows]
    values = torch.tensor(VALUES, dtype=dtype, device=codes.device)[unpack(codes, samples.groups).int()]
    at = columns(samples.shape, samples.stride, samples.seed, codes.device, rows)
    out = torch.zeros(codes.shape[0], samples.groups * samples.stride, dtype=dtype, device=codes.device)
    out.scatter_(1, at, values * torch.tensor(samples.scale, dtype=torch.float32, device=codes.device).to(dtype))
    return out[:, : samples.shape[1]]


class SampleBank:
    """Samples of every loaded task of one [out_features, in_features] layer.

    transposed: they are of the [in_features, out_features] matrix (layers that store their weight so).

    What the ops take, all of it on the bank's device:
    codes: on the CPU a tensor a sample, as given (a memory-mapped file stays one); else one arena of all
    table: int64 [samples, 4], in the order of slots: slot, where its codes begin in that one tensor, stride, seed
    starts: int64 [slots + 1]: a slot's rows of the table are starts[slot] to starts[slot + 1];  scales: float32
    """

    def __init__(self, in_features: int, out_features: int, device="cpu", transposed: bool = False,
                 arena: bool | None = None):
        self.in_features, self.out_features, self.device = in_features, out_features, torch.device(device)
        self.transposed = transposed
        self.arena = self.device.type != "cpu" if arena is None else arena
        self._samples: dict[int, tuple[Samples, ...]] = {}
        self._refresh()

    @property
    def shape(self) -> tuple[int, int]:
        """Of the matrices."""
        shape = self.out_features, self.in_features
        return shape[::-1] if self.transposed else shape

    def add(self, slot: int, samples: tuple[Samples, ...]) -> None:
        """Put a task's samples, each of the bank's ``shape``, into a free or used slot."""
        for one in samples:
            if one.shape != self.shape:
                raise ValueError(f"samples of {list(one.shape)} do not fit a layer's matrix of {list(self.shape)}")
        self._samples[slot] = tuple(one.to(self.device) for one in samples)
        self._refresh()

    def remove(self, slot: int) -> None:
        self._samples.pop(slot, None)
        self._refresh()

    def samples(self, slot: int) -> tuple[Samples, ...]:
        return self._samples[slot]

    @property
    def slots(self) -> list[int]:
        return sorted(self._samples)

    def to(self, device) -> "SampleBank":
        moved = SampleBank(self.in_features, self.out_features, device, self.transposed)
        for slot, samples in self._samples.items():
            moved.add(slot, samples)
        return moved

    @property
    def arguments(self) -> tuple[list[Tensor], Tensor, Tensor, Tensor]:
        """(codes, table, starts, scales) of the class's docstring."""
        if self._ready is None:
            self._ready = self._derive()
        return self._ready

    def _refresh(self) -> None:
        """Derive again what the ops take; beyond EAGER tasks when first needed, see `Bank`."""
        self._ready = self._derive() if len(self._samples) <= EAGER else None

    def _derive(self) -> tuple[list[Tensor], Tensor, Tensor, Tensor]:
        found = [(slot, one) for slot in self.slots for one in self._samples[slot]]
        counts = [len(self._samples.get(slot, ())) for slot in range(max(self._samples, default=-1) + 1)]
        codes, offset, rows = [one.codes for _, one in found], 0, []
        for slot, one in found:
            rows.append([slot, offset, one.stride, one.seed])
            offset += one.codes.numel()
        if self.arena and codes:
            codes = [torch.cat([c.flatten() for c in codes])]
            pieces = codes[0].split([one.codes.numel() for _, one in found])
            shared = iter(piece.view(one.codes.shape) for piece, (_, one) in zip(pieces, found))
            self._samples = {  # views: the one tensor is the only copy
                slot: tuple(Samples(next(shared), s.scale, s.stride, s.seed, s.shape) for s in self._samples[slot])
                for slot in self.slots
            }
        place = lambda rows, dtype: torch.tensor(rows, dtype=dtype, device=self.device)  # noqa: E731
        table = place(rows, torch.int64).view(-1, 4)
        starts = torch.tensor([0, *counts]).cumsum(0).to(self.device)
        return codes, table, starts, place([one.scale for _, one in found], torch.float32)


def samples_of(codes: list[Tensor], table: Tensor, starts: Tensor, scales: Tensor,
               shape: tuple[int, int]) -> dict[int, tuple[Samples, ...]]:
    """The inverse of a bank's arguments: slot -> samples; shape: (out_features, in_features).  Reads the table on the
    host."""
    found: dict[int, tuple[Samples, ...]] = {}
    arena = codes[0].dim() == 1 if codes else False
    for k, ((slot, offset, stride, seed), scale) in enumerate(zip(table.tolist(), scales.tolist())):
        size = (shape[0], packed_width(groups_of(shape[1], stride)))
        own = codes[0][offset : offset + size[0] * size[1]].view(size) if arena else codes[k]
        found[slot] = (*found.get(slot, ()), Samples(own, scale, stride, seed, shape))
    return found
