"""PrinMix: its integer program is solved exactly, and its corrected target is the best one."""

import itertools

import numpy as np
import pytest
import torch

from benchmarks.quality.peers import PEERS, prinmix
from benchmarks.quality.peers.prinmix import allocate, corrected


def by_brute_force(losses, costs, budget):
    """The least loss, by trying all choices."""
    least = np.inf
    for choice in itertools.product(range(len(costs)), repeat=len(losses)):
        if sum(costs[c] for c in choice) <= budget:
            least = min(least, sum(row[c] for row, c in zip(losses, choice)))
    return least


def by_table(losses, costs, budget):
    """The least loss, by dynamic programming over every budget."""
    least = np.zeros(budget + 1)
    for row in losses:
        options = [np.r_[np.full(c, np.inf), least[: budget + 1 - c]] + x for c, x in zip(costs, row) if c <= budget]
        least = np.min(options, axis=0)
    return least[budget]


def check(losses, costs, budget, expected):
    choice = allocate(losses, costs, budget)
    assert costs[choice].sum() <= budget
    assert losses[np.arange(len(losses)), choice].sum() == pytest.approx(expected, rel=1e-12, abs=1e-15)


@pytest.mark.parametrize("seed", range(60))
def test_the_allocation_is_the_best_one(seed):
    draws = np.random.default_rng(seed)
    costs = np.r_[0, np.sort(draws.integers(1, 30, 3))]
    losses = draws.random((5, 4)) * draws.random((5, 1)) ** 3
    if seed % 3 == 0:
        losses = losses.round(1)  # ties
    if seed % 4:
        losses = -np.sort(-losses)  # as it is for widths; otherwise more bytes can be worse
    for budget in (0, 7, 20, 55, 200):
        check(losses, costs, budget, by_brute_force(losses, costs, budget))


@pytest.mark.parametrize("seed", range(5))
def test_many_vectors_of_like_loss_are_allocated_as_well_as_by_a_table(seed):
    draws = np.random.default_rng(seed)
    costs = np.r_[0, 5 + 7 * np.arange(1, 9)]
    values = np.arange(1, 65.0) ** -(0.0, 0.5, 1.0, 0.1, 0.0)[seed]
    losses = values[:, None] * 4.0 ** -np.arange(9) * (1 + 0.1 * draws.random((64, 9)))
    if seed == 4:
        losses = np.tile(losses[:1], (64, 1))  # all alike
    for budget in (11, 97, 500, 2001):
        check(losses, costs, budget, by_table(losses, costs, budget))


def test_the_corrected_target_is_the_least_squares_one():
    generator = torch.Generator().manual_seed(0)
    delta = torch.randn(30, 40, generator=generator)
    u, s, vh = torch.linalg.svd(delta, full_matrices=False)
    u, s, vh = u[:, :6], s[:6], vh[:6]
    torch.testing.assert_close(corrected(delta, s, vh), u, rtol=1e-4, atol=1e-5)  # nothing to correct
    rounded = vh + 0.05 * torch.randn(vh.shape, generator=generator)
    target = corrected(delta, s, rounded)
    error = lambda u: (delta - (u * s) @ rounded).norm().item()  # noqa: E731
    assert error(target) < error(u)
    for _ in range(20):
        assert error(target) <= error(target + 0.01 * torch.randn(target.shape, generator=generator))
    assert corrected(delta, s[:0], vh[:0]).shape == (30, 0)


def test_it_errs_less_than_fixed_widths_at_equal_bytes():
    generator = torch.Generator().manual_seed(0)
    u, _, vh = torch.linalg.svd(torch.randn(256, 256, generator=generator))
    for power in (0.5, 1.0):
        deltas = {"w": (u * torch.arange(1, 257) ** -power) @ vh}
        found = {name: PEERS[name].encode([deltas], 0.03, 0)[0] for name in ("prinmix", "delta-come")}
        errors = {name: (one.deltas["w"] - deltas["w"]).norm() for name, one in found.items()}
        assert errors["prinmix"] < errors["delta-come"]


def test_where_there_is_nothing_to_store_nothing_is():
    thin = torch.outer(torch.arange(1.0, 65), torch.arange(1.0, 49))
    encoded = prinmix([{"w": thin, "v": torch.zeros(48, 64)}], 0.03, 0)[0]
    assert not encoded.deltas["v"].any()
    assert (encoded.deltas["w"] - thin).norm() < 0.01 * thin.norm()
    assert encoded.bits <= 0.03 * 32 * 64 * 48
    nothing = prinmix([{"v": torch.zeros(48, 64)}], 0.03, 0)[0]
    assert nothing.bits == 0
    too_small = prinmix([{"w": thin}], 1e-4, 0)[0]
    assert too_small.bits == 0 and not too_small.deltas["w"].any()
