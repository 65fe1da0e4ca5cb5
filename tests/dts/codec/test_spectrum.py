"""Predicted errors against measured ones, and the predictions' own bounds."""

import pytest
import torch
from matrices import power_law

from dts.codec import compress_tensor, error_bounds, predicted_error, singular_values

# m, n, exponent, how near the paper's error is to its prediction: few vectors carry a steep spectrum's energy
SPECTRA = [(256, 256, 0.3, 0.03), (384, 128, 0.5, 0.03), (256, 192, 0.8, 0.06), (256, 256, 1.2, 0.15)]


@pytest.mark.parametrize("m, n, exponent, nearness", SPECTRA)
@pytest.mark.parametrize("fraction", [0.05, 0.1, 0.3])
def test_prediction_is_near_what_is_measured(m, n, exponent, nearness, fraction):
    delta = power_law(m, n, exponent)
    values = singular_values(delta)
    rank = int(fraction * min(m, n))
    residual = compress_tensor(delta, rank=rank).squared_error
    assert predicted_error(values, [rank]).item() == pytest.approx(residual, rel=0.35)
    lower, upper = (bound.item() for bound in error_bounds(values, [rank]))
    assert lower < residual < upper
    paper = compress_tensor(delta, method="paper", rank=rank).squared_error
    assert predicted_error(values, [rank], "paper").item() == pytest.approx(paper, rel=nearness)


@pytest.mark.parametrize("shape", [(40, 30), (30, 40), (3000, 5), (1, 7)])
def test_singular_values(shape):
    delta = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(singular_values(delta), torch.linalg.svdvals(delta.double()), rtol=1e-6, atol=1e-6)


def test_predictions_fall_with_rank_and_start_at_nothing_kept():
    values = torch.arange(1, 101).double() ** -0.5
    ranks = range(0, 401)
    residual, paper = predicted_error(values, ranks), predicted_error(values, ranks, "paper")
    assert residual[0] == paper[0] == 1
    assert (residual.diff() <= 0).all() and (paper.diff() <= 0).all()
    assert residual[400] < 0.01 < residual[100]
    lower, upper = error_bounds(values, ranks)
    assert (lower <= residual + 1e-12).all() and (residual <= upper + 1e-12).all()
