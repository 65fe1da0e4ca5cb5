import math

import pytest
import torch

from dts import metrics


def test_rates():
    assert metrics.amr(nbytes=400, parameters=10_000) == 0.01
    assert math.isclose(metrics.adr(0.8, 0.6), 0.25)
    assert metrics.adr(0.8, 0.9) < 0


def test_agreement_counts_equal_answers():
    logits = torch.tensor([[1.0, 2.0], [3.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    reference = torch.tensor([[0.0, 9.0], [0.0, 1.0], [0.0, 1.0], [2.0, 1.0]])
    assert metrics.agreement(logits, reference) == 0.5


def test_kl_of_two_known_distributions():
    reference, logits = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.9, 0.1]]).log()
    expected = 0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1)
    assert math.isclose(metrics.kl(logits, reference), expected, rel_tol=1e-6)
    assert metrics.kl(reference, logits) != pytest.approx(expected)  # the direction matters


def test_kl_is_zero_for_shifted_logits_and_matches_torch():
    reference, logits = torch.randn(2, 50, 7, dtype=torch.float64)
    assert metrics.kl(reference + 3, reference) == pytest.approx(0, abs=1e-12)
    expected = torch.nn.functional.kl_div(
        logits.log_softmax(-1), reference.log_softmax(-1), log_target=True, reduction="batchmean"
    )
    assert metrics.kl(logits, reference) == pytest.approx(expected.item())
