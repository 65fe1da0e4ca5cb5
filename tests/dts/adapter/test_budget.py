"""Ranks from one budget: against all allocations of small problems, and properties of any."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dts.adapter.budget import BudgetError, Curve, allocate, allocate_exactly, hull, levelled


@st.composite
def curves(draw, count=3, steps=4):
    made = []
    for _ in range(draw(st.integers(1, count))):
        n = draw(st.integers(1, steps))
        gains = draw(st.lists(st.floats(0.0, 10.0), min_size=n, max_size=n))
        costs = draw(st.lists(st.integers(1, 50), min_size=n, max_size=n))
        errors = sum(gains) - np.cumsum([0.0, *gains])
        made.append(Curve(4 * np.arange(n + 1), np.cumsum([0, *costs]), errors))
    return made


def spent(curves, ranks) -> tuple[int, float]:
    at = [int(np.flatnonzero(c.ranks == k)[0]) for c, k in zip(curves, ranks)]
    return sum(int(c.bytes[i]) for c, i in zip(curves, at)), sum(float(c.errors[i]) for c, i in zip(curves, at))


@settings(deadline=None)
@given(curves(), st.integers(0, 300))
def test_never_above_capacity_and_within_one_step_of_the_best(curves, capacity):
    nbytes, error = spent(curves, allocate(curves, capacity))
    assert nbytes <= capacity
    every = [spent(curves, ranks) for ranks in product(*(c.ranks for c in curves))]
    best = min(e for b, e in every if b <= capacity)
    step = max(float(c.errors[i] - c.errors[j]) for c in curves for i, j in zip([0, *hull(c)], hull(c)))
    assert error <= best + step + 1e-9  # greedy over hulls loses at most the one step that did not fit


@settings(deadline=None)
@given(curves(), st.floats(0, 30))
def test_target_is_reached_if_it_can_be(curves, target):
    _, error = spent(curves, allocate(curves, target=target))
    assert error <= max(target, sum(float(c.errors.min()) for c in curves)) + 1e-9


@settings(deadline=None)
@given(curves(), st.integers(0, 300), st.integers(-7, 7))
def test_exact_total_is_kept_although_curves_know_it_only_nearly(curves, nbytes, wrong):
    total = lambda ranks: 20 + spent(curves, ranks)[0] + wrong * sum(k > 0 for k in ranks)  # noqa: E731
    if nbytes < 20:
        with pytest.raises(BudgetError, match="20 bytes"):
            allocate_exactly(curves, nbytes, total)
    else:
        assert total(allocate_exactly(curves, nbytes, total)) <= nbytes


def test_hull_skips_a_first_block_that_pays_for_headers():
    curve = Curve(np.array([0, 4, 8, 12]), np.array([0, 500, 600, 700]), np.array([10.0, 9.5, 2.0, 1.0]))
    assert hull(curve) == [0, 2, 3]


def test_a_search_whose_step_is_smaller_than_a_block_goes_on():
    """The curve lacks 700 bytes of headers, a block has 800: asking for the 20 bytes too many less changes no rank."""
    ranks = 4 * np.arange(41)
    curve = Curve(ranks, 200 * ranks, 100.0 * 0.9 ** np.arange(41))
    total = lambda ranks: 1000 + sum(200 * k + 700 * (k > 0) for k in ranks)  # noqa: E731
    assert total(allocate_exactly([curve], 17_680, total)) == 1000 + 200 * 76 + 700


def test_a_matrix_counts_for_its_elements_and_not_for_how_far_it_moved():
    ranks = np.arange(0, 33, 4)
    curve = lambda scale: Curve(ranks, 10 * ranks, scale * 0.9**ranks)  # noqa: E731
    curves = [curve(1.0), curve(1.0), curve(1.0), curve(0.05), curve(1e-6)]  # the last holds rounding noise only
    plain = allocate(curves, 640)
    even = allocate(levelled(curves, [100] * 5), 640)
    assert plain[3] < plain[0] / 2
    assert even == [16, 16, 16, 16, 0]


def test_a_matrix_that_moved_much_farther_than_the_others_counts_for_more():
    ranks = np.arange(0, 65, 4)
    curve = lambda scale: Curve(ranks, 10 * ranks, scale * 0.9**ranks)  # noqa: E731
    near = allocate(levelled([curve(1.0), curve(1.0), curve(1.6)], [100] * 3), 480)
    far = allocate(levelled([curve(1.0), curve(1.0), curve(6.0)], [100] * 3), 480)
    assert near == [16, 16, 16]
    assert far[2] > far[0] + 8


def test_levelling_leaves_a_model_that_did_not_move():
    still = Curve(np.zeros(1, int), np.zeros(1, int), np.zeros(1))
    assert levelled([still, still], [10, 10]) == [still, still]
