"""A budget is an upper bound even where every plan promises less than the codec then takes."""

import pytest
import torch

import dts
from dts.adapter import BudgetError, plans, run


def pair():
    generator = torch.Generator().manual_seed(0)
    base = {f"layers.{i}.weight": torch.randn(96, 80, generator=generator) for i in range(3)}
    return base, {name: w + 0.01 * torch.randn(w.shape, generator=generator) for name, w in base.items()}


@pytest.mark.parametrize("method", ["residual", "sketch", "paper"])
@pytest.mark.parametrize("ignored", [40, 10_000])
def test_a_planner_that_underestimates(monkeypatch, method, ignored):
    """The whole adapter weighs more than planned by a constant, in every round."""
    right = plans.measured

    def measured(config, entries, base_digests, digests=False, beside=0):
        size = right(config, entries, base_digests, digests, beside)
        return size + ignored if digests and any(e.factors is not None for e in entries.values()) else size

    monkeypatch.setattr(plans, "measured", measured)
    adapter = dts.compress(*pair(), nbytes=9_000, method=method)
    assert adapter.nbytes + (ignored if any(e.factors for e in adapter.entries.values()) else 0) <= 9_000


def test_a_planner_that_promises_a_quarter(monkeypatch):
    right = run.Run._ranks
    monkeypatch.setattr(run.Run, "_ranks", lambda run, asked: right(run, 4 * asked))
    adapter = dts.compress(*pair(), nbytes=9_000, method="residual")
    assert adapter.nbytes <= 9_000


def test_what_never_fits_is_an_error(monkeypatch):
    right = plans.measured
    monkeypatch.setattr(
        plans, "measured", lambda c, e, d, digests=False, beside=0: right(c, e, d, digests, beside) + 10**6 * digests
    )
    with pytest.raises(BudgetError, match="smallest possible size"):
        dts.compress(*pair(), nbytes=9_000)
