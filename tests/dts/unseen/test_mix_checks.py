"""What a mixture refuses."""

import pytest
import torch

import dts
from dts.checkpoint import Mismatch

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
