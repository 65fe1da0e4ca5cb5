"""PrinMix (before: ADAMIX, DeltaMix): a bit width for each singular vector, by an integer program."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from benchmarks.quality.peers.common import Deltas, Encoded, svd_of
from benchmarks.quality.peers.rounding import in_groups

WIDTHS = tuple(range(9))  # bits an element; 0: left out
GROUP = 128


def prinmix(tasks: list[Deltas], fraction: float, seed: int) -> list[Encoded]:
    """PrinMix: V of each matrix's U S V in 0 to 8 bits a row, chosen so that sum_i s_i^2 |v_i - rounded v_i|^2 is least
    at the matrix's share of the bytes, U in the same widths a column; U is rounded after its target was corrected to
    what fits the rounded V best.  Groups of 128 that each have their smallest value and step, in fp16.

    Published with calibration data X, which weighs all errors by X X^T; without data that is the identity, and rounding
    by GPTQ is rounding to nearest.  Its cap on the number of different widths of a matrix, which can only worsen the
    sum, is left out.
    """
    return [_prinmix(deltas, fraction) for deltas in tasks]


def _prinmix(deltas: Deltas, fraction: float) -> Encoded:
    result, bits = {}, 0
    for name, delta in deltas.items():
        u, s, vh = svd_of(delta)
        rounded = torch.stack([in_groups(vh, width, GROUP) if width else torch.zeros_like(vh) for width in WIDTHS])
        losses = s.double().square() * (rounded - vh).double().square().sum(2)  # [widths, rank]
        costs = np.array([_triplet_bits(tuple(delta.shape), width) for width in WIDTHS])
        widths = torch.from_numpy(allocate(losses.T.numpy(), costs, int(fraction * 32 * delta.numel())))
        kept = widths.nonzero()[:, 0]
        stored = s[kept].half().float()
        v = rounded[widths[kept], kept]
        u = corrected(delta, stored, v)
        for width in widths[kept].unique().tolist():
            columns = widths[kept] == width
            u[:, columns] = in_groups(u[:, columns].T.contiguous(), width, GROUP).T
        result[name] = (u * stored) @ v
        bits += int(costs[widths].sum())
    return Encoded(result, bits, bits)


def _triplet_bits(shape: tuple[int, int], width: int) -> int:
    return sum(length * width + math.ceil(length / GROUP) * 32 for length in shape) + 16 if width else 0


def corrected(delta: Tensor, s: Tensor, v: Tensor) -> Tensor:
    """U [m, k] of the least |delta - U diag(s) v|^2, in float64 until the end.  s: [k], all > 0; v: [k, n]."""
    if not len(s):
        return delta.new_zeros(len(delta), 0)
    scaled = s.double()[:, None] * v.double()
    return torch.linalg.lstsq(scaled.T, delta.double().T).solution.T.float().contiguous()


def allocate(losses: np.ndarray, costs: np.ndarray, budget: int) -> np.ndarray:
    """One choice a row, int64 [rows], that makes the sum of losses least at a sum of costs of at most `budget`: the 0/1
    program, exactly.  losses: [rows, choices]; costs: int [choices], the first 0, so that some choice always fits.

    A Lagrange multiplier prices the costs, which gives a lower bound and a choice that fits.  What is dearer than its
    row's cheapest by more than the gap between the two is in no optimum; the rest is searched by dynamic programming.
    """
    fits, bound, multiplier = _relaxed(losses, costs, budget)
    best = float(np.take_along_axis(losses, fits[:, None], 1).sum())
    prices = losses + multiplier * costs
    extra = prices - prices.min(1, keepdims=True)
    tolerance = 1e-12 * max(1.0, abs(best))  # the sums are rounded
    possible = extra <= best - bound + tolerance
    choice = np.where(possible, extra, np.inf).argmin(1)
    free = np.flatnonzero(possible.sum(1) > 1)
    fixed = np.delete(choice, free)
    left = budget - int(costs[fixed].sum())
    choice[free] = _searched(losses[free], costs, left, possible[free])
    return choice


def _relaxed(losses: np.ndarray, costs: np.ndarray, budget: int) -> tuple[np.ndarray, float, float]:
    """(a choice that fits, the largest lower bound found of the optimum, its multiplier)."""
    rows = np.arange(len(losses))

    def priced(multiplier: float) -> tuple[np.ndarray, int, float]:
        choice = (losses + multiplier * costs).argmin(1)
        spent = int(costs[choice].sum())
        return choice, spent, float(losses[rows, choice].sum()) + multiplier * (spent - budget)

    choice, spent, bound = priced(0.0)
    if spent <= budget:
        return choice, bound, 0.0
    low, high = 0.0, float(losses.max()) / float(costs[costs > 0].min()) + 1e-300
    fits, bounds = np.zeros(len(losses), dtype=np.int64), [(bound, 0.0)]
    for _ in range(100):
        middle = (low + high) / 2
        choice, spent, bound = priced(middle)
        bounds.append((bound, middle))
        if spent <= budget:
            fits, high = choice, middle
        else:
            low = middle
    return fits, *max(bounds)


def _searched(losses: np.ndarray, costs: np.ndarray, budget: int, possible: np.ndarray) -> np.ndarray:
    """As `allocate`, of the `possible` choices, bool [rows, choices], some of which fit; a row at a time, by all pairs
    of (cost, loss) that no other pair is better than in both."""
    spent, lost, steps = np.zeros(1, dtype=np.int64), np.zeros(1), []
    for row, allowed in zip(losses, possible):
        options = np.flatnonzero(allowed)
        cost = (spent[:, None] + costs[options]).ravel()
        loss = (lost[:, None] + row[options]).ravel()
        order = np.lexsort((loss, cost))
        order = order[cost[order] <= budget]
        least = np.minimum.accumulate(loss[order])
        order = order[np.r_[True, loss[order][1:] < least[:-1]]]
        spent, lost = cost[order], loss[order]
        steps.append((order // len(options), options[order % len(options)]))
    choice, at = np.empty(len(losses), dtype=np.int64), int(lost.argmin())
    for i in reversed(range(len(steps))):
        parents, options = steps[i]
        choice[i], at = options[at], parents[at]
    return choice
