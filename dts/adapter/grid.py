"""Numbers rounded to a few bits: whole multiples of a scale that 64 neighbours share.

Of n numbers, row by row, groups of ``GROUP`` have a scale each, and a number is its group's scale times a whole number
of ``bits`` bits, from -(2^(bits - 1) - 1) to 2^(bits - 1) - 1.  On disk a bfloat16 [groups], and the whole numbers as
``bits`` bits each (two's complement), one after another from the lowest bit of the first byte on.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from dts.adapter.errors import AdapterError
from dts.values import LARGEST
from dts_kernels.rounded import SHARED, RoundedVector

GROUP = SHARED  # numbers: a scale costs a quarter of a bit a number
NARROWER = 12  # scales that are tried: from the one that holds the largest number, each 4 % below the one before
AT_ONCE = 1 << 16  # groups that are rounded at a time


@dataclass(frozen=True)
class Grid:
    """stored: uint8 [ceil(bits n / 8)], the codes as they lie on disk;  scales: bfloat16 [ceil(n / GROUP)];  shape: of
    what was rounded."""

    stored: Tensor
    scales: Tensor
    bits: int
    shape: tuple[int, ...]

    @classmethod
    def of(cls, codes: Tensor, scales: Tensor, bits: int) -> Grid:
        """codes: int8, the shape of what was rounded."""
        numbers = codes.reshape(-1).numpy().view(np.uint8)
        if bits == 8:
            stored = numbers
        else:
            each = numbers[:, None] >> np.arange(bits, dtype=np.uint8) & 1
            stored = np.packbits(each.reshape(-1), bitorder="little")
        return cls(torch.from_numpy(stored), scales, bits, tuple(codes.shape))

    @cached_property
    def codes(self) -> Tensor:
        """int8, the shape of what was rounded."""
        if self.bits == 8:
            return self.stored.view(torch.int8).view(self.shape)
        count, bits = math.prod(self.shape), self.bits
        each = np.unpackbits(self.stored.numpy(), count=count * bits, bitorder="little").reshape(count, bits)
        codes = (each << np.arange(bits, dtype=np.uint8)).sum(1, dtype=np.uint8) << (8 - bits)
        return torch.from_numpy(codes.view(np.int8) >> (8 - bits)).view(self.shape)

    def vector(self) -> RoundedVector:
        """As models compute with it, in the same memory."""
        return RoundedVector.of(self.stored, self.scales, self.bits, math.prod(self.shape))

    def values(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """What the codes stand for, of their shape."""
        wide = self.scales.to(dtype).repeat_interleave(GROUP)[: self.codes.numel()]
        return self.codes.to(dtype) * wide.view(self.codes.shape)


def rounded_to(values: Tensor, bits: int) -> Grid | None:
    """The grid nearest to floating point numbers, of the scales tried; None where no scale may be stored."""
    flat = values.detach().reshape(-1)
    if not flat.numel() or not flat.abs().max() <= LARGEST:  # which a NaN is not either
        return None
    groups = torch.nn.functional.pad(flat, (0, -len(flat) % GROUP)).view(-1, GROUP)
    parts = [_rounded(part, 2 ** (bits - 1) - 1) for part in groups.split(AT_ONCE)]
    codes, scales = (torch.cat(part) for part in zip(*parts))
    return Grid.of(codes.view(-1)[: len(flat)].view(values.shape), scales, bits)


def _rounded(groups: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """(int8 codes, bfloat16 scales) of floating [count, GROUP]."""
    groups = groups.double()
    widest = groups.abs().amax(1) / most
    errors, choices = [], []
    for step in range(NARROWER if most < 127 else 1):  # which the largest number of 64 hardly coarsens
        scales = (widest * 0.96**step).bfloat16()
        codes = _codes(groups, scales, most)
        errors.append((codes * scales.double()[:, None] - groups).square().sum(1))
        choices.append(scales)
    best = torch.stack(choices).gather(0, torch.stack(errors).argmin(0)[None])[0]
    return _codes(groups, best, most).to(torch.int8), best


def _codes(groups: Tensor, scales: Tensor, most: int) -> Tensor:
    """float64, 0 where the scale is."""
    divisors = torch.where(scales > 0, scales.double(), torch.inf)
    return (groups / divisors[:, None]).round().clamp(-most, most)


def stored_bytes(elements: int, bits: int) -> int:
    """Of codes and scales."""
    return (elements * bits + 7) // 8 + 2 * -(-elements // GROUP)


def grid_from(name: str, shape: tuple[int, ...], bits: int, stored: Tensor | None, scales: Tensor | None) -> Grid:
    """The inverse of `Grid.stored`, of what may come from anywhere; raises AdapterError naming the tensor."""
    count = torch.Size(shape).numel()
    expected = ((count * bits + 7) // 8,), (-(-count // GROUP),)
    if stored is None or scales is None or (stored.dtype, scales.dtype) != (torch.uint8, torch.bfloat16):
        raise AdapterError(f"{name}: its {bits}-bit numbers or their scales are missing or of another dtype")
    if (tuple(stored.shape), tuple(scales.shape)) != expected:
        raise AdapterError(
            f"{name}: {list(stored.shape)} bytes and {list(scales.shape)} scales are not those of {list(shape)} "
            f"in {bits} bits"
        )
    if not ((scales >= 0) & (scales <= LARGEST)).all():
        raise AdapterError(f"{name}: its scales are no numbers, or too large")
    if (over := bits * count % 8) and int(stored[-1]) >> over:
        raise AdapterError(f"{name}: bits beyond its {count} numbers are set")
    return Grid(stored, scales, bits, tuple(shape))
