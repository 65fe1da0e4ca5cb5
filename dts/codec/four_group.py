"""The published rounding (arXiv 2512.01461): four groups, each at its root mean square.

Of all elements together: the positive ones, by size, are split into a larger and a smaller half, and so are
the negative ones.  Each group's elements become the group's RMS with the group's sign.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from dts.sums import energy, squared_difference
from dts_kernels.layout import PackedFactors, pack
from dts_kernels.reference import reconstruct

from . import spectrum
from .method import Method, Parts
from .parts import components
from .svd import significant


def four_group(x: Tensor) -> Tensor:
    """x, of any shape, rounded to four values; exact zeros stay zero.  Same shape and dtype."""
    codes, levels = four_group_codes(x)
    return torch.where(x == 0, x, levels.to(x.dtype)[codes.int()])


def four_group_codes(x: Tensor) -> tuple[Tensor, Tensor]:
    """(codes uint8 of x's shape, levels float32 [4] = the values of codes 0..3).

    Two bits hold no zero: an exact zero gets the small positive code.
    """
    flat = x.reshape(-1)
    codes = torch.zeros(flat.shape, dtype=torch.uint8, device=x.device)
    levels = torch.zeros(4, device=x.device)
    for sign, small in ((1, 0), (-1, 2)):
        index = (flat * sign > 0).nonzero()[:, 0]
        size = flat[index].double().abs()
        order = size.argsort(descending=True, stable=True)
        half = len(index) // 2
        for code, group in ((small + 1, order[:half]), (small, order[half:])):
            codes[index[group]] = code
            if len(group):
                levels[code] = sign * size[group].square().mean().sqrt()
    return codes.view(x.shape), levels


def encode(delta: Tensor, rank: int, seed: int = 0) -> tuple[PackedFactors, float]:
    """U diag(S) V of the largest ``rank`` singular triplets, U and V rounded each on its own, S not rounded.

    delta: float32 [m, n] without zero rows or columns.  Returns at most ``rank`` components (those that are below
    float32's rounding of delta are left out; nothing is random, ``seed`` is not used) and the squared relative error.
    """
    u, s, vh = torch.linalg.svd(delta, full_matrices=False)
    rank = min(rank, significant(s, delta.shape))
    u, s, vh = u[:, :rank], s[:rank], vh[:rank]
    (u_codes, u_levels), (v_codes, v_levels) = four_group_codes(u), four_group_codes(vh)
    packed = PackedFactors(pack(u_codes), pack(v_codes.T), s, torch.stack([u_levels, v_levels]))
    return packed, squared_difference(delta, reconstruct(packed)) / energy(delta)


class Paper(Method):
    """Components as published: of every matrix, vectors kept exactly, levels of the matrix's own."""

    name, rank_limit, small, rounds_vectors = "paper", 1, True, False
    about = "the published algorithm, arXiv 2512.01461"

    def encode(self, delta: Tensor, rank: int, seed: int = 0) -> tuple[Parts, float]:
        packed, error = encode(delta, rank, seed)
        return (packed,), error

    def planned(self, rank: int, shape: tuple[int, int]) -> Parts:
        return (components.planned(rank, shape, levels=True),)

    def nbytes(self, ranks: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
        return components.bytes_at(shape, ranks, levels=True)

    def left(self, singular: Tensor, ranks: np.ndarray, shape: tuple[int, int]) -> Tensor:
        return spectrum.paper_error(singular, ranks)

    def predicted_error(self, singular: Tensor, ranks: Any, shape: tuple[int, int] | None) -> Tensor:
        return spectrum.paper_error(singular, ranks)

    def error_bounds(self, singular: Tensor, ranks: Any, shape: tuple[int, int] | None) -> tuple[Tensor, Tensor]:
        return spectrum.paper_bounds(singular, ranks)


METHOD = Paper()
