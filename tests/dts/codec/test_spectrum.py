"""Predicted errors against measured ones, on matrices of many kinds, and the predictions' own bounds.

Tolerances: the codec's prediction has three measured constants and was within 15 % of nearly every matrix of real
fine-tunes up to r = .4; where few components carry the energy, few random elements decide, and both methods vary more.
"""

import pytest
import torch
from matrices import power_law

from dts.codec import compress_tensor, error_bounds, predicted_error, singular_values, spectrum

NEAR = 0.15
FRACTIONS = (0.02, 0.05, 0.15, 0.4)


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def low_rank(m: int, n: int, rank: int):
    """Exactly of that rank, its vectors normal."""
    return randn(m, rank) @ randn(rank, n, seed=1)


def spiky(m: int, n: int):
    """Singular vectors whose energy is in 3 % of their elements, and a little noise."""
    kept = [torch.rand(size, 40, generator=torch.Generator().manual_seed(size)) < 0.03 for size in (m, n)]
    u, v = randn(m, 40) * kept[0], randn(n, 40, seed=1) * kept[1]
    return (u * torch.arange(1, 41).float() ** -0.5) @ v.T + 1e-3 * randn(m, n, seed=2)


# (matrix, how near the codec's and how near the paper's error is to its prediction)
NORMAL = {
    "random": (randn(192, 256), NEAR, 0.02),
    "tall": (randn(512, 64), NEAR, 0.02),
    "flat power law": (power_law(384, 128, 0.5), NEAR, 0.03),
    "power law": (power_law(256, 192, 0.8), NEAR, 0.06),
    "steep power law": (power_law(256, 256, 1.2), 0.25, 0.2),  # half of the energy is in one component
}


@pytest.mark.parametrize("name", NORMAL)
@pytest.mark.parametrize("fraction", FRACTIONS)
def test_prediction_is_near_what_is_measured(name, fraction):
    delta, near, near_paper = NORMAL[name]
    values, rank = singular_values(delta), max(1, int(fraction * min(delta.shape)))
    for method, tolerance in (("residual", near), ("paper", near_paper)):
        measured = compress_tensor(delta, method=method, rank=rank).squared_error
        assert predicted_error(values, [rank], method, delta.shape).item() == pytest.approx(measured, rel=tolerance)
        lower, upper = (bound.item() for bound in error_bounds(values, [rank], method))
        assert lower <= measured <= upper


def test_low_rank():
    """Near below its rank, where its energies end at once less so, and optimistic where most components correct."""
    delta = low_rank(256, 192, 24)
    values = singular_values(delta)
    for rank, least, most in ((6, 0.9, 1.1), (12, 0.9, 1.1), (24, 0.75, 1.1), (96, 0.25, 1)):
        measured = compress_tensor(delta, rank=rank).squared_error
        assert least < predicted_error(values, [rank], shape=delta.shape).item() / measured < most
        lower, upper = error_bounds(values, [rank])
        assert lower <= measured <= upper
    assert measured < 0.05
    paper = compress_tensor(delta, method="paper", rank=24).squared_error
    assert predicted_error(values, [24], "paper").item() == pytest.approx(paper, rel=0.03)


@pytest.mark.parametrize("method", ["residual", "paper"])
def test_spiky_vectors_err_more_than_normal_ones_and_only_the_lower_bound_holds(method):
    """Elements of singular vectors far from normal: here the assumption of prediction and upper bound fails."""
    delta = spiky(256, 192)
    values = singular_values(delta)
    measured = compress_tensor(delta, method=method, rank=8).squared_error
    lower, upper = (bound.item() for bound in error_bounds(values, [8], method))
    assert lower < predicted_error(values, [8], method, delta.shape).item() < upper < measured


def test_a_real_fine_tune():
    """Every matrix of a small transformer after some steps of training on sequences with a rule to learn."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=200,
        hidden_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=192,
        max_position_embeddings=24,
        num_labels=4,
    )
    model = transformers.BertForSequenceClassification(config)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(30):
        words = torch.randint(0, 200, (32, 16))
        optimiser.zero_grad()
        model(input_ids=words, labels=words[:, :4].sum(1) % 4).loss.backward()
        optimiser.step()
    energy, lost, expected = 0.0, {"residual": 0.0, "paper": 0.0}, {"residual": 0.0, "paper": 0.0}
    for name, p in model.named_parameters():
        if "encoder" not in name or p.dim() != 2:
            continue
        delta = p.detach() - before[name]
        values, rank, norm = singular_values(delta), int(0.15 * min(p.shape)), delta.norm().square().item()
        energy += norm
        for method in lost:
            measured = compress_tensor(delta, method=method, rank=rank).squared_error
            predicted = predicted_error(values, [rank], method, p.shape).item()
            lower, upper = error_bounds(values, [rank], method)
            assert lower <= measured <= upper and predicted == pytest.approx(measured, rel=0.2), name
            lost[method] += norm * measured
            expected[method] += norm * predicted
    for method in lost:
        assert expected[method] == pytest.approx(lost[method], rel=0.08)


@pytest.mark.parametrize("shape", [(40, 30), (30, 40), (3000, 5), (1, 7)])
def test_singular_values(shape):
    delta = randn(*shape)
    assert torch.allclose(singular_values(delta), torch.linalg.svdvals(delta.double()), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("exponent", [0.3, 0.6, 1.2])
@pytest.mark.parametrize("shape", [None, (100, 100), (100, 400)])
def test_predictions_fall_with_rank_and_start_at_nothing_kept(exponent, shape):
    values = torch.arange(1, 101).double() ** -exponent
    ranks = range(0, 401)
    residual, paper = predicted_error(values, ranks, shape=shape), predicted_error(values, ranks, "paper")
    assert residual[0] == paper[0] == 1
    assert (residual[4:].diff() <= 0).all() and (paper.diff() <= 0).all()
    assert residual[400] < 0.012 < residual[30]
    for method, predicted in (("residual", residual), ("paper", paper)):
        lower, upper = error_bounds(values, ranks, method)
        assert (lower <= predicted + 1e-12).all() and (predicted <= upper + 1e-12).all()


def test_many_ranks_at_once_are_what_each_alone_is():
    values, ranks = torch.arange(1, 101).double() ** -0.6, range(0, 401, 20)
    alone = torch.cat([predicted_error(values, [rank], shape=(100, 400)) for rank in ranks])
    assert torch.allclose(predicted_error(values, ranks, shape=(100, 400)), alone, rtol=0.02)


def test_bounds_hold_where_the_codecs_scale_adds_more_error_than_it_removes():
    """At a share of the energy below 1 / 81 the scaled components err by more than nothing at all would."""
    values = torch.ones(400)
    lower, upper = error_bounds(values, [1])
    assert lower.item() == 1 and 1 < predicted_error(values, [1]).item() <= upper.item() < 1.04


@pytest.mark.parametrize("ranks", [[0], [3], [0, 7, 20], list(range(0, 241, 4))])
def test_shares_of_few_ranks_are_those_of_a_whole_sort(ranks):
    """Bit by bit, ties and zeros included."""
    values = torch.tensor([3.0, 3.0, 2.0] + [1.0] * 17 + [0.25] * 38 + [0.0, 0.0])
    energies = spectrum.sorted_energies(values)
    for kept in (0.88, 0.9375):
        sums = spectrum.offers(energies, kept).sort(descending=True).values.cumsum(0)
        wanted = (kept**2 * torch.cat([sums.new_zeros(1), sums])[torch.tensor(ranks)]).clamp(max=1)
        assert torch.equal(spectrum.residual_share(energies, ranks, kept), wanted)
    bits = spectrum.bits_at(energies, torch.tensor([*ranks, 240]), (60, 80))
    assert torch.equal(spectrum.bits_at(energies, torch.tensor(ranks), (60, 80)), bits[:-1])
