"""ImPart and ImPart-Qt: singular vectors, the less important the more sparsely sampled."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.quality.peers.common import Deltas, Encoded, largest, svd_of
from benchmarks.quality.peers.rounding import uniform

PREPRUNED, POWER = 0.8, 0.5  # the published beta and C
GROUP = 128


def impart(tasks: list[Deltas], fraction: float, seed: int) -> list[Encoded]:
    """ImPart: of the k-th singular vectors a random share 1 - p_k of the elements, divided by that share, in fp16;
    p_k = gamma (1 - (s_k / s_1)^C).

    Every matrix gets the same share of its elements.  Of its singular triplets the least 80 % go first (beta, scaled to
    a matrix's sides as the published one is), gamma is what the rest may drop on average, and C = 0.5.  The published
    beta and C are found with validation data at each size; these are the ones published with the code.

    Kinder to it than published: the masks come from a seed, and of the last vector, which would be left out where it
    does not fit as a whole, as many elements are sampled as fit, without which the smallest sizes hold nothing.
    `published_bits` counts elements only.
    """
    return [_impart(deltas, fraction, seed, lambda index: 16, _half) for deltas in tasks]


def impart_qt(tasks: list[Deltas], fraction: float, seed: int) -> list[Encoded]:
    """ImPart-Qt: as `impart`, elements of the first 2 vectors in 8 bits, of the next 32 in 3, of the others in 2,
    rounded to nearest (the published one rounds by GPTQ, which needs data).

    Groups of 128 that each have their smallest value and step are of kept elements: groups of positions, as published,
    would pay for a scale every few elements.
    """
    return [_impart(deltas, fraction, seed, _width, _grouped) for deltas in tasks]


@dataclass(frozen=True)
class Kept:
    """How many elements of each of the first vectors on either side of one matrix are kept: [k] each."""

    rows: list[int]
    columns: list[int]


def shares(singular_values: Tensor, shape: tuple[int, int], share: float) -> Tensor:
    """1 - p_k of the vectors that keep any element, float64 [k]; share: of the matrix's elements.

    The vectors on both sides together keep share * m * n elements.
    """
    least, total = min(shape), shape[0] * shape[1] / sum(shape)
    budget = min(share * total, least)  # in whole vectors on both sides
    unpruned = min(least, max((1 - PREPRUNED) * 2 * total, budget))
    s = singular_values.double()[: math.ceil(unpruned)]
    if not s[0] > 0:
        return s[:0]
    kept = 1 - (1 - budget / unpruned) * (1 - (s / s[0]) ** POWER)
    before = kept.cumsum(0) - kept
    return torch.minimum(kept, budget - before)[before < budget]


def sampled(vectors: Tensor, kept: list[int], generator: torch.Generator, rounded) -> Tensor:
    """Of column k of `vectors` [length, k] kept[k] random elements, rounded(elements, k), so scaled that their mean
    over draws is the column."""
    out = torch.zeros(vectors.shape)
    for k, number in enumerate(kept):
        chosen = torch.randperm(len(vectors), generator=generator)[:number]
        out[chosen, k] = rounded(vectors[chosen, k] * (len(vectors) / number), k)
    return out


def _impart(deltas: Deltas, fraction: float, seed: int, width, rounded) -> Encoded:
    """width(k): bits of an element of the k-th vectors."""
    values = {name: svd_of(delta)[1].half().float() for name, delta in deltas.items()}  # as stored: p_k comes from them

    def plan(share: float) -> dict[str, Kept]:
        return {name: _counts(values[name], tuple(delta.shape), share) for name, delta in deltas.items()}

    def bits(kept: Kept) -> int:
        each = [(number, k) for side in (kept.rows, kept.columns) for k, number in enumerate(side)]
        scales = sum(32 * math.ceil(number / GROUP) for number, k in each if width(k) < 16)
        return sum(number * width(k) for number, k in each) + scales + 16 * len(kept.rows)

    found = plan(largest(lambda share: sum(map(bits, plan(share).values())), fraction, deltas))
    generator, result = torch.Generator().manual_seed(seed), {}
    for name, delta in deltas.items():
        (u, _, vh), kept, k = svd_of(delta), found[name], len(found[name].rows)
        u = sampled(u[:, :k], kept.rows, generator, rounded)
        v = sampled(vh[:k].T, kept.columns, generator, rounded)
        result[name] = (u * values[name][:k]) @ v.T
    each = [(n, k) for kept in found.values() for side in (kept.rows, kept.columns) for k, n in enumerate(side)]
    return Encoded(result, sum(map(bits, found.values())), sum(number * width(k) for number, k in each))


def _counts(singular_values: Tensor, shape: tuple[int, int], share: float) -> Kept:
    kept = shares(singular_values, shape, share).tolist()
    return Kept(*([max(1, round(one * length)) for one in kept] for length in shape))


def _width(index: int) -> int:
    return 8 if index < 2 else 3 if index < 34 else 2


def _grouped(x: Tensor, index: int) -> Tensor:
    return uniform(x, _width(index), GROUP)


def _half(x: Tensor, index: int) -> Tensor:
    return x.half().float()
