"""Published properties of the peers, and their bytes."""

import math

import pytest
import torch

from benchmarks.quality import peers
from benchmarks.quality.peers import PEERS
from benchmarks.quality.peers.dropped import mixed_rates


def tasks(number=3, shapes=((24, 48), (64, 32)), seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        {f"w{i}": torch.randn(shape, generator=generator) * (i + 1) for i, shape in enumerate(shapes)}
        for _ in range(number)
    ]


@pytest.mark.parametrize("name", [name for name, peer in PEERS.items() if peer.sizes])
@pytest.mark.parametrize("fraction", [0.02, 0.05])
def test_a_size_is_kept_to_and_used(name, fraction):
    given = tasks(shapes=((192, 256), (256, 128)))
    for deltas, encoded in zip(given, PEERS[name].encode(given, fraction, 0)):
        share = encoded.bits / peers.fp32_bits(deltas)
        # random masks keep a random number of elements; gaps of unequal densities cost less than of equal ones
        assert 0.8 * fraction <= share <= 1.03 * fraction
        assert {n: d.shape for n, d in encoded.deltas.items()} == {n: d.shape for n, d in deltas.items()}


@pytest.mark.parametrize("name", PEERS)
def test_the_same_seed_gives_the_same_result_and_inputs_stay(name):
    given, copy = tasks(), tasks()
    fraction = 0.2 if PEERS[name].sizes else None
    first, second = (PEERS[name].encode(given, fraction, 3) for _ in range(2))
    for a, b, before, after in zip(first, second, copy, given):
        for tensor in a.deltas:
            assert torch.equal(a.deltas[tensor], b.deltas[tensor])
            assert torch.equal(before[tensor], after[tensor])


@pytest.mark.parametrize("name", ["dare", "drop 4 bit", "ultradelta"])
def test_dropping_is_unbiased(name):
    given = tasks(1, shapes=((32, 32),))
    draws = torch.stack([PEERS[name].encode(given, 0.1, seed)[0].deltas["w0"] for seed in range(400)])
    expected = given[0]["w0"] if name == "dare" else peers.uniform(given[0]["w0"], 4)
    error = (draws.mean(0) - expected).abs().mean() / (draws.std(0).mean() / 400**0.5)
    assert error < 1.0  # the mean absolute deviation of a mean, in its standard errors, is about 0.8


def test_a_plain_svd_spends_bytes_on_the_largest_singular_values_of_all():
    (deltas,) = tasks(1, shapes=((192, 256), (256, 128)))
    wide, narrow = (PEERS[f"svd {bits} bit"].encode([deltas], 0.05, 0)[0].deltas for bits in (8, 4))
    spectra = {name: torch.linalg.svdvals(delta) for name, delta in deltas.items()}
    ranks = {name: int(torch.linalg.matrix_rank(wide[name])) for name in deltas}
    costs = {name: sum(8 * n + math.ceil(n / 128) * 32 for n in delta.shape) + 16 for name, delta in deltas.items()}
    least = min((spectra[n][k - 1] ** 2 / costs[n]).item() for n, k in ranks.items() if k)
    most = max((spectra[n][k] ** 2 / costs[n]).item() for n, k in ranks.items())
    assert sum(ranks.values()) and least > 0.9 * most  # but for what no longer fits
    for name, delta in deltas.items():
        u, s, vh = torch.linalg.svd(delta, full_matrices=False)
        k = ranks[name]
        exact = (u[:, :k] * s[:k]) @ vh[:k]
        assert (wide[name] - exact).norm() <= 0.02 * exact.norm()
    error = lambda found: sum((found[n] - d).square().sum().item() for n, d in deltas.items())  # noqa: E731
    assert error(narrow) < error(wide)  # twice the triplets are worth more than their rounding costs


def test_groups_are_equal_in_number_and_keep_their_energy():
    x = torch.randn(40, 30)
    for groups in (2, 4, 8):
        rounded = peers.grouped(x, groups)
        assert len(rounded.unique()) == groups
        assert torch.equal(rounded.sign(), x.sign())
        assert math.isclose(rounded.norm(), x.norm(), rel_tol=1e-5)
    errors = [(peers.grouped(x, groups) - x).norm() for groups in (2, 4, 8)]
    assert errors == sorted(errors, reverse=True)


def test_full_rank_without_rounding_is_exact():
    given = tasks(1)
    encode = peers.low_rank(lambda x: x, 16, 16, 0)
    for name, delta in encode(given, 100.0, 0)[0].deltas.items():
        torch.testing.assert_close(delta, given[0][name], rtol=1e-4, atol=1e-4)


def test_the_paper_is_measured_at_every_rank():
    deltas = {"w": torch.randn(64, 48)}
    ranks = set()
    for rank in range(1, 40):
        encoded = PEERS["dts paper"].encode([deltas], (rank * (2 * (64 + 48) + 32) + 257) / (32 * 64 * 48), 0)[0]
        assert encoded.bits == rank * (2 * (64 + 48) + 32) + 256
        ranks.add(int(torch.linalg.matrix_rank(encoded.deltas["w"])))
    assert ranks == set(range(1, 40))


def test_a_shared_base_is_worth_its_bits_where_tasks_are_alike():
    mean = torch.randn(40, 50)
    given = [{"w": mean + 0.1 * torch.randn(40, 50)} for _ in range(4)]
    found = {name: PEERS[name].encode(given, None, 0) for name in ("rtvq", "tvq 2 bit", "tvq 4 bit")}
    errors = {n: sum((one.deltas["w"] - d["w"]).norm().item() for one, d in zip(o, given)) for n, o in found.items()}
    assert errors["tvq 4 bit"] < 0.5 * errors["tvq 2 bit"] and errors["rtvq"] < 0.5 * errors["tvq 2 bit"]
    (rtvq, *_), (plain, *_) = found["rtvq"], found["tvq 2 bit"]
    assert rtvq.bits == plain.bits and rtvq.shared_bits == 3 * 2000 + 64
    assert rtvq.published_bits == rtvq.bits + rtvq.shared_bits / 4


def test_bitdelta_keeps_the_mean_magnitude_at_one_bit():
    given = tasks(1)
    encoded = peers.bitdelta(given, None, 0)[0]
    for name, delta in given[0].items():
        assert math.isclose(encoded.deltas[name].abs().mean(), delta.abs().mean(), rel_tol=1e-5)
        assert torch.equal(encoded.deltas[name].sign(), delta.sign())
    assert encoded.bits == sum(d.numel() + 16 for d in given[0].values())


def test_mixed_rates_keep_the_mean():
    deltas = {f"w{i}": torch.randn(10, 10) * (i + 1) for i in range(6)}
    rates = mixed_rates(deltas, 0.9, 0.04)
    assert math.isclose(sum(rates.values()) / 6, 0.9)
    assert [round(rates[f"w{i}"], 6) for i in range(6)] == [0.94, 0.94, 0.9, 0.9, 0.86, 0.86]


def test_t_switch_keeps_the_largest_elements_and_the_norm():
    given = tasks(1)
    encoded = peers.t_switch(given, 0.03, 0)[0].deltas
    kept = torch.cat([given[0][n][encoded[n] != 0].abs() for n in encoded])
    dropped = torch.cat([given[0][n][encoded[n] == 0].abs() for n in encoded])
    assert kept.min() >= dropped.max()
    norm = lambda deltas: torch.cat([d.flatten() for d in deltas.values()]).norm()  # noqa: E731
    assert math.isclose(norm(encoded), norm(given[0]), rel_tol=1e-5)


def test_emr_and_tall_mask_are_exact_for_one_task():
    given = tasks(1)
    for encode in (peers.emr, peers.tall_mask):
        for name, delta in encode(given, None, 0)[0].deltas.items():
            torch.testing.assert_close(delta, given[0][name])


def test_emr_keeps_each_tasks_mean_magnitude():
    given = tasks(4)
    for deltas, encoded in zip(given, peers.emr(given, None, 0)):
        total = lambda d: sum(x.abs().sum() for x in d.values())  # noqa: E731
        assert math.isclose(total(encoded.deltas), total(deltas), rel_tol=1e-5)
        assert all((encoded.deltas[n] * deltas[n] >= 0).all() for n in deltas)


def test_tsv_compress_costs_about_one_model_for_all_tasks_of_square_matrices():
    given = tasks(4, shapes=((64, 64),))
    total = sum(encoded.bits for encoded in peers.tsv_compress(given, None, 0))
    assert math.isclose(total, 2 * peers.fp32_bits(given[0]), rel_tol=0.02)  # U and V of rank 64 in all


def test_uniform_has_evenly_spaced_values_and_errs_by_half_a_step():
    x = torch.randn(1000)
    rounded = peers.uniform(x, 3)
    step = (x.max() - x.min()) / 7
    assert len(rounded.unique()) <= 8
    assert (rounded - x).abs().max() <= step / 2 + 1e-6
    assert torch.equal(peers.uniform(torch.full((5,), 2.0), 4), torch.full((5,), 2.0))


@pytest.mark.parametrize("density", [0.001, 0.01, 0.1, 0.5])
def test_mask_bits_are_near_the_entropy(density):
    mask = torch.rand(200, 1000, generator=torch.Generator().manual_seed(0)) < density
    entropy = -sum(p * math.log2(p) for p in (density, 1 - density)) * mask.numel()
    assert entropy * 0.98 < peers.mask_bits(mask) < entropy * 1.06
    assert math.isclose(peers.mask_bits(mask), peers.rice_bits_an_element(density) * mask.numel(), rel_tol=0.06)
