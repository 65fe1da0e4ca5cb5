"""Norms and other layers of vectors."""

import pytest
import torch
from each_row import check
from torch import nn

from dts.nn import DTSLayerNorm, DTSNorm
from dts.nn.deltas import Piece


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
