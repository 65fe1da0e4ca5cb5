"""Norms and other layers of vectors."""

import copy

import pytest
import torch
from each_row import check
from torch import nn

from dts.nn import DTSLayerNorm, DTSNorm
from dts.nn.deltas import Piece
from dts.nn.layers.layer import standalone


@pytest.mark.parametrize("shape", [6, (3, 6)])
def test_layer_norm(shape, maker, dense_twin):
    norm = nn.LayerNorm(shape)
    if isinstance(shape, tuple):  # its own delta is 2-D and raw
        layer = DTSLayerNorm.from_layer_norm(norm.double())
        delta = maker.randn(3, 6)
        layer.load(0, {"weight": [Piece("raw", delta)]})
        layer.dts.state.set([{0: 1.0}, {}])
        x = maker.randn(2, 3, 6, scale=1.0)
        expected = nn.functional.layer_norm(x, (3, 6)) * torch.stack([1 + delta, torch.ones(3, 6)])
        torch.testing.assert_close(layer(x), expected, rtol=1e-9, atol=1e-9)
    else:
        check(norm, DTSLayerNorm, maker, dense_twin, maker.randn(4, 5, 6, scale=1.0))


@pytest.mark.parametrize("parameter", ["weight", "bias"])
def test_layer_norm_of_which_one_parameter_changed(parameter, maker):
    layer = DTSLayerNorm.from_layer_norm(nn.LayerNorm(6))
    delta = maker.randn(6, dtype=torch.float32)
    layer.load(0, {parameter: [Piece("raw", delta)]})
    layer.dts.state.set([{0: 1.0}, {}])
    x = maker.randn(4, 5, 6, scale=1.0, dtype=torch.float32)
    changed = {"weight": torch.ones(6), "bias": torch.zeros(6)}
    changed[parameter] = changed[parameter] + delta
    expected = torch.cat([nn.functional.layer_norm(x[:2], (6,), **changed), nn.functional.layer_norm(x[2:], (6,))])
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize("norm", [nn.RMSNorm(6), nn.GroupNorm(2, 6), nn.PReLU(6)], ids=lambda m: type(m).__name__)
def test_other_vectors(norm, maker, dense_twin):
    x = maker.randn(4, 6, 6, scale=1.0) if isinstance(norm, nn.RMSNorm) else maker.randn(4, 6, 5, scale=1.0)
    check(norm, DTSNorm, maker, dense_twin, x)


class Gained(nn.Module):
    """An RMS norm as transformers has it: what it computes broadcasts."""

    def __init__(self, size):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x):
        wide = x.float()
        return self.weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)).to(x.dtype)


class Centred(Gained):
    """It broadcasts too, and means another thing: the mean is over all that it gets but the first axis."""

    def forward(self, x):
        return self.weight * (x - x.mean(tuple(range(1, x.dim())), keepdim=True))


class Sized(Gained):
    def forward(self, x):
        return x * self.weight.view(6)  # of its own shape only


NORMS = {"Gained": Gained(6), "RMSNorm": nn.RMSNorm(6, eps=1e-5), "RMSNorm, own eps": nn.RMSNorm(6)}
NORMS |= {"Centred": Centred(6), "Sized": Sized(6), "PReLU": nn.PReLU(5)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("shape", [(6, 6), (6, 5, 6), (6, 5, 4, 6)], ids=str)
def test_rows_go_through_a_norm_at_once_where_that_gives_the_same_bits(name, shape, dtype, maker):
    norm = copy.deepcopy(NORMS[name]).to(dtype).requires_grad_(False)
    if name == "PReLU":
        if len(shape) == 2:
            shape = (6, 5)
        shape = (6, 5, *shape[2:])
    layer = standalone(norm, DTSNorm)
    deltas = [maker.randn(*norm.weight.shape, dtype=torch.float32) for _ in range(2)]
    for slot, delta in enumerate(deltas):
        layer.load(slot, {"weight": [Piece("raw", delta)]})
    layer.dts.state.set([{1: 1.0}, {}, {0: 0.5, 1: 2.0}])
    x = 1e-3 * maker.randn(*shape, scale=1.0, dtype=dtype)
    y = layer(x)
    wide = torch.promote_types(dtype, torch.float32)
    first, second = (delta.to(wide) for delta in deltas)
    weights = [norm.weight.to(wide) + d for d in (second, 0, 0.5 * first + 2 * second)]
    wanted = []
    for row, weight in enumerate(weights):
        one = copy.deepcopy(norm)
        one.weight.copy_(weight)
        wanted.append(one(x[2 * row : 2 * row + 2]))
    assert y.dtype == wanted[0].dtype and torch.equal(y, torch.cat(wanted))
    assert list(layer.dts.at_once.values()) == [name in ("Gained", "RMSNorm", "RMSNorm, own eps")]


def test_what_a_norm_keeps_of_a_routing_follows_what_is_in_its_slots(maker):
    """Of calls one after the other with the same tasks; another adapter in a slot, and a switch in the same tensors."""
    layer = gained()
    x, state = maker.randn(4, 6, dtype=torch.float32), layer.dts.state
    state.keeping = True

    def expected(*deltas):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * (1 + torch.stack(deltas))

    first, second, other = (maker.randn(6, dtype=torch.float32) for _ in range(3))
    rows = [{0: 1.0}, {1: 1.0}, {0: 0.5, 1: 0.25}, {}]
    for own in ((first, second), (other, second)):
        for slot, delta in enumerate(own):
            layer.load(slot, {"weight": [Piece("raw", delta)]})
        wanted = expected(*own, 0.5 * own[0] + 0.25 * own[1], torch.zeros(6))
        for _ in range(2):
            with state.using(rows):
                torch.testing.assert_close(layer(x), wanted)
    for mixtures in ([{0: 1.0}, {1: 1.0}, {}, {}], [{}, {0: 1.0}, {1: 1.0}, {}]):  # the same tensors, written in place
        state.set(mixtures)
        deltas = [other if 0 in one else second if 1 in one else torch.zeros(6) for one in mixtures]
        torch.testing.assert_close(layer(x), expected(*deltas))
    for mixture, delta in (({0: 1.0}, other), ({1: 1.0}, second), ({1: 0.5}, 0.5 * second)):
        state.set([mixture])
        torch.testing.assert_close(layer(x), expected(*[delta] * 4))
    layer.remove(0)
    with state.using(rows):
        assert layer.dts.state.routing.made  # it is kept
        torch.testing.assert_close(layer(x)[0], expected(*[torch.zeros(6)] * 4)[0])


def gained():
    return standalone(Gained(6), DTSNorm)


def test_gradients_reach_the_input_after_a_call_without_them(maker):
    layer = gained()
    layer.dts.state.keeping = True
    layer.load(0, {"weight": [Piece("raw", maker.randn(6, dtype=torch.float32))]})
    x = maker.randn(2, 6, dtype=torch.float32)
    with layer.dts.state.using([{0: 1.0}, {}]):
        with torch.inference_mode():
            layer(x.clone())
        x.requires_grad_(True)
        layer(x).sum().backward()
    assert x.grad is not None and x.grad.abs().sum() > 0


@torch.no_grad()
def test_a_layer_norm_of_one_mixture_has_the_bits_of_its_sums_and_follows_what_is_written(maker):
    """The short way of a CPU: float32, every row of one mixture; and nothing of a call is kept for the next."""
    layer = DTSLayerNorm.from_layer_norm(nn.LayerNorm(6))
    deltas = [{n: maker.randn(6, dtype=torch.float32) for n in ("weight", "bias")} for _ in range(2)]
    for slot, own in enumerate(deltas):
        layer.load(slot, {name: [Piece("raw", delta)] for name, delta in own.items()})
    x = maker.randn(4, 6, scale=1.0, dtype=torch.float32)
    for slot in (0, 1, None):
        layer.dts.state.set([{} if slot is None else {slot: 1.0}])
        for _ in range(2):
            own = {n: layer._parameters[n] + (0 if slot is None else deltas[slot][n]) for n in ("weight", "bias")}
            assert torch.equal(layer(x), nn.functional.layer_norm(x, (6,), **own))
            layer._parameters["weight"].data += 1  # which no version counts
            layer._parameters["bias"].mul_(2).add_(1)
    x[1] = torch.nan
    assert layer(x).isnan().any(1).tolist() == [False, True, False, False]
