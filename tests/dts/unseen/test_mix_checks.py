"""What a mixture refuses."""

import pytest
import torch

import dts
from dts.adapter import NoEffect
from dts.checkpoint import Mismatch
from dts.unseen import mix

BASE = {"a.weight": torch.randn(20, 24, generator=torch.Generator().manual_seed(0))}


def adapter(seed):
    delta = torch.randn(20, 24, generator=torch.Generator().manual_seed(seed))
    return dts.compress(BASE, {"a.weight": BASE["a.weight"] + 0.1 * delta}, rank_fraction=0.5)


@pytest.mark.parametrize("weight", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers(weight):
    with pytest.raises(ValueError, match="finite.*'a'"):
        dts.unseen.mix({"a": adapter(1), "b": adapter(2)}, {"a": weight, "b": 1.0})


def test_another_base():
    other = {"a.weight": BASE["a.weight"] + 1}
    with pytest.raises(Mismatch, match="a.weight"):
        dts.unseen.mix({"a": adapter(1), "b": adapter(2)}, {"a": 0.5, "b": 0.5}, base=other)


def test_a_task_named_twice_on_the_command_line():
    from dts.cli.mix import weights_of

    with pytest.raises(ValueError, match="'a' twice"):
        weights_of(["a=1", "b=2", "a=3"])


def test_weights_that_cancel_are_refused():
    base = {"a.weight": torch.randn(24, 24), "b.weight": torch.randn(24, 24)}
    adapter = dts.compress(base, {name: value + 0.1 for name, value in base.items()}, rank_fraction=0.3)
    bias = {"a.weight": base["a.weight"], "b.weight": base["b.weight"]} | {"head.weight": torch.ones(2, 24)}
    heads = dts.compress(base, bias, rank_fraction=0.3)
    with pytest.raises(NoEffect, match="the mixture is the base itself: .*heads, added rows"):
        mix({"a": heads}, {"a": 1.0})
    with pytest.raises(NoEffect, match="its members change 4 tensors, and these weights cancel them all"):
        mix({"a": adapter, "b": adapter}, {"a": 1.0, "b": -1.0})
    account = mix({"a": adapter, "b": heads}, {"a": 1.0, "b": 1.0}).account
    assert account.counts["mixture"] == {"changed": 2}
