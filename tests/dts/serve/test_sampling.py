import pytest
import torch

from dts.serve.refused import NotFinite
from dts.serve.sampling import Draws, Sampling, Scored, _nucleus, choose


def chosen(draws, logits):
    """By one row alone; logits: [vocabulary]."""
    (found,) = choose([draws], logits[None])
    return found


def counts(logits, n=4000, **options):
    draws = Draws(Sampling(1, seed=3, **options))
    found = torch.tensor([chosen(draws, logits) for _ in range(n)])
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
    assert chosen(Draws(Sampling(1, temperature=0)), logits) == int(logits.argmax())
    same = [[chosen(draws, logits) for _ in range(20)] for draws in (Draws(Sampling(1, seed=s)) for s in (5, 5, 6))]
    assert same[0] == same[1] != same[2]


@pytest.mark.parametrize("temperature", [1e-320, 1e-4, 1e6])
def test_extreme_temperatures_are_numbers(temperature):
    assert 0 <= chosen(Draws(Sampling(1, temperature=temperature, seed=0)), torch.tensor([1.0, 5.0, 3.0])) < 3


@pytest.mark.parametrize("temperature", [0, 1])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_what_is_no_number_is_no_choice(temperature, bad):
    logits = torch.full((4,), bad) if bad == -torch.inf else torch.tensor([1.0, bad, 0.0, 2.0])
    assert isinstance(chosen(Draws(Sampling(1, temperature=temperature)), logits), NotFinite)


HOW = [dict(temperature=0), dict(), dict(temperature=0.7, top_p=0.8), dict(top_p=0.999), dict(temperature=3, top_p=0.2)]


def test_rows_at_once_get_what_each_gets_alone():
    logits = 4 * torch.randn(len(HOW), 3000, generator=torch.Generator().manual_seed(1))
    together, alone = ([Draws(Sampling(1, seed=i, **how)) for i, how in enumerate(HOW)] for _ in range(2))
    for _ in range(20):
        assert choose(together, logits) == [chosen(draws, row) for draws, row in zip(alone, logits)]


def test_a_row_of_no_numbers_harms_no_other():
    logits = torch.tensor([[0.0, 9.0], [torch.nan, 1.0], [9.0, 0.0], [torch.inf, 1.0]])
    found = choose([Draws(Sampling(1, temperature=t)) for t in (0, 0, 0.01, 1)], logits)
    assert found[::2] == [1, 0] and all(isinstance(one, NotFinite) for one in found[1::2])


@pytest.mark.parametrize("top_p", [1e-9, 0.1, 0.5, 0.9, 0.999999])
def test_the_nucleus_is_that_of_all_shares_in_order(top_p):
    """Beside the plain way: sort all of them; with ties at its edge."""
    for logits in (
        torch.randn(2000),
        torch.randn(2000).mul(3).round(),
        torch.zeros(50),
        torch.tensor([5.0, -torch.inf]),
    ):
        shares = torch.softmax(logits, 0)
        ordered, order = shares.sort(descending=True, stable=True)
        before = ordered.double().cumsum(0) - ordered
        kept = order[before < top_p]
        expected = torch.zeros_like(shares).index_copy_(0, kept, shares[kept])
        assert torch.equal(_nucleus(shares, top_p), expected) and (expected > 0).sum() > 0


def test_a_draw_falls_where_the_sum_of_shares_passes_it(monkeypatch):
    """Never to a token of no share, at neither end."""
    logits = torch.tensor([-torch.inf, 0.0, -torch.inf, 1.0, -torch.inf])
    for number, token in ((0.0, 1), (0.26, 1), (0.27, 3), (1 - 2**-53, 3)):
        monkeypatch.setattr(Draws, "uniform", lambda self, number=number: number)
        assert chosen(Draws(Sampling(1)), logits) == token


def test_what_cannot_be_is_not_among_the_likeliest():
    """Its log probability is infinite, which JSON has no number for."""
    logits = torch.tensor([0.0, -torch.inf, 1.0, -torch.inf])
    found = Scored.of(logits, 0, 4)
    assert [token for token, _ in found.top] == [2, 0] and found.logprob == found.top[1][1]
