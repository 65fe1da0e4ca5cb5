"""ImPart: which elements are kept, that what is kept is unbiased, and its bytes."""

import math

import pytest
import torch

from benchmarks.quality.peers import impart, impart_qt
from benchmarks.quality.peers.impart import PREPRUNED, sampled, shares


def low_rank_noise(shape=(96, 128), seed=0):
    """A matrix whose singular values fall off as 1 / k."""
    generator = torch.Generator().manual_seed(seed)
    u, _, vh = torch.linalg.svd(torch.randn(shape, generator=generator), full_matrices=False)
    return (u / torch.arange(1, min(shape) + 1)) @ vh


def published(values, share_of_uv, preprune, power=0.5):
    """1 - p_k by the published algorithm, plainly: shares of all of U's (and V's) elements."""
    values = [v**power for v in values][: round(len(values) * (1 - preprune))]
    gamma = ((1 - share_of_uv) - preprune) / (1 - preprune)
    dropped = [(1 - v / values[0]) * gamma for v in values]
    last = len(dropped) - 1
    while sum(dropped) / len(dropped) < gamma:
        dropped[last] = 1
        last -= 1
    return [1 - p for p in dropped[: last + 1]]


@pytest.mark.parametrize("share", [0.02, 0.06, 0.15, 0.19])
def test_shares_are_the_published_ones_but_for_the_last_vector(share):
    values = 1 / torch.arange(1, 101).double()
    mine = shares(values, (100, 100), 2 * share).tolist()  # U and V together have twice a square matrix's elements
    theirs = published(values.tolist(), share, PREPRUNED)
    assert mine[0] == 1 and mine == sorted(mine, reverse=True)
    assert len(mine) - len(theirs) in (0, 1)
    assert mine[: len(theirs)] == pytest.approx(theirs, rel=1e-6)
    assert sum(mine) == pytest.approx(100 * share)  # all of the share is spent


def test_the_share_of_a_matrix_is_met_whatever_its_sides():
    for shape in ((50, 200), (200, 50), (64, 64)):
        for share in (0.004, 0.05, 0.5, 1.0):
            mine = shares(1 / torch.arange(1, min(shape) + 1).double(), shape, share)
            assert (mine.sum() * sum(shape)).item() == pytest.approx(share * math.prod(shape))
            assert ((mine > 0) & (mine <= 1 + 1e-12)).all()


def test_sampled_vectors_are_unbiased():
    vectors = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    draws = torch.stack([sampled(vectors, [40, 13, 2], generator, lambda x, k: x) for _ in range(2000)])
    assert torch.equal(draws[0, :, 0], vectors[:, 0])  # kept as a whole: exact
    assert (draws != 0).sum(1).tolist() == [[40, 13, 2]] * 2000
    deviation = (vectors[:, 1:].abs() * torch.tensor([40 / 13 - 1, 40 / 2 - 1]).sqrt()) / 2000**0.5
    assert ((draws.mean(0) - vectors)[:, 1:].abs() / deviation).max() < 4.5
    assert 0.6 < ((draws.mean(0) - vectors)[:, 1:].abs() / deviation).mean() < 1.0  # about 0.8 in the mean


def test_products_of_both_sides_are_unbiased():
    deltas = {"w": low_rank_noise()}
    draws = torch.stack([impart([deltas], 0.01, seed)[0].deltas["w"] for seed in range(300)])
    u, s, vh = torch.linalg.svd(deltas["w"], full_matrices=False)
    kept = int(torch.linalg.matrix_rank(draws[0]))
    assert kept > 1 and not torch.equal(draws[0], draws[1])
    error = draws.mean(0) - (u[:, :kept] * s[:kept]) @ vh[:kept]
    assert (error.abs().mean() / (draws.std(0).mean() / 300**0.5)).item() < 1.0


def test_bits_are_of_kept_elements_and_singular_values():
    deltas = {"w": low_rank_noise()}
    kept = [
        round(x * n) for n in (96, 128) for x in shares(torch.linalg.svdvals(deltas["w"]), (96, 128), 0.05).tolist()
    ]
    encoded = impart([deltas], (16 * sum(kept) + 16 * len(kept) // 2 + 1) / (32 * 96 * 128), 0)[0]
    assert encoded.published_bits == 16 * sum(kept)
    assert encoded.bits == encoded.published_bits + 16 * len(kept) // 2


def test_quantised_vectors_have_few_values_the_first_two_more():
    shape = (512, 512)
    deltas = {"w": low_rank_noise(shape)}
    encoded = impart_qt([deltas], 0.02, 0)[0]
    exact = impart([deltas], 0.02, 0)[0]
    rank = {name: int(torch.linalg.matrix_rank(one.deltas["w"])) for name, one in (("qt", encoded), ("fp16", exact))}
    assert rank["qt"] > 3 * rank["fp16"]  # what fewer bits buy
    error = {name: (one.deltas["w"] - deltas["w"]).norm() for name, one in (("qt", encoded), ("fp16", exact))}
    assert error["qt"] < error["fp16"]
    assert encoded.bits > encoded.published_bits  # which leaves scales and singular values out


@pytest.mark.parametrize("method", [impart, impart_qt])
def test_a_matrix_of_zeros_stays_one(method):
    encoded = method([{"w": torch.zeros(32, 48), "v": low_rank_noise()}], 0.05, 0)[0]
    assert not encoded.deltas["w"].any() and encoded.deltas["v"].any()
