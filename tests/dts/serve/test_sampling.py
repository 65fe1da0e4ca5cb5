import pytest
import torch

from dts.serve.refused import NotFinite
from dts.serve.sampling import Draws, Sampling


def counts(logits, n=4000, **options):
    draws = Draws(Sampling(1, seed=3, **options))
    found = torch.tensor([draws.choose(logits) for _ in range(n)])
    return torch.bincount(found, minlength=len(logits)) / n


def test_draws_have_the_softmax_of_the_temperature():
    logits = torch.tensor([1.0, 0.0, 2.0, -torch.inf])
    for temperature in (0.5, 1.0, 2.0):
        found = counts(logits, temperature=temperature)
        assert torch.allclose(found, torch.softmax(logits / temperature, 0), atol=0.03) and found[3] == 0


def test_top_p_keeps_as_few_of_the_most_likely_as_have_its_share():
    logits = torch.tensor([0.1, 0.5, 0.3, 0.1]).log()
    assert torch.allclose(counts(logits, top_p=0.7), torch.tensor([0.0, 0.625, 0.375, 0.0]), atol=0.03)
    assert counts(logits, n=50, top_p=0.01)[1] == 1


def test_temperature_nothing_is_the_most_likely_and_a_seed_repeats():
    logits = torch.randn(50, generator=torch.Generator().manual_seed(0))
    assert Draws(Sampling(1, temperature=0)).choose(logits) == int(logits.argmax())
    same = [[draws.choose(logits) for _ in range(20)] for draws in (Draws(Sampling(1, seed=s)) for s in (5, 5, 6))]
    assert same[0] == same[1] != same[2]


@pytest.mark.parametrize("temperature", [1e-320, 1e-4, 1e6])
def test_extreme_temperatures_are_numbers(temperature):
    assert 0 <= Draws(Sampling(1, temperature=temperature, seed=0)).choose(torch.tensor([1.0, 5.0, 3.0])) < 3


@pytest.mark.parametrize("temperature", [0, 1])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_what_is_no_number_is_no_choice(temperature, bad):
    logits = torch.full((4,), bad) if bad == -torch.inf else torch.tensor([1.0, bad, 0.0, 2.0])
    with pytest.raises(NotFinite):
        Draws(Sampling(1, temperature=temperature)).choose(logits)
