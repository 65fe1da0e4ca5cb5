"""Convolutions."""

import copy

import pytest
import torch
from each_row import check
from torch import nn

from dts.nn import DTSConv2d, DTSModel, Owner


@pytest.mark.parametrize(
    "options",
    [
        dict(kernel_size=3),
        dict(kernel_size=(2, 3), stride=(2, 1), padding=1),
        dict(kernel_size=3, padding="same"),
        dict(kernel_size=3, dilation=2, padding=2, padding_mode="reflect"),
        dict(kernel_size=4, stride=4, bias=False),
    ],
    ids=str,
)
def test_conv2d(options, maker, dense_twin):
    check(nn.Conv2d(3, 5, **options), DTSConv2d, maker, dense_twin, maker.randn(4, 3, 8, 8, scale=1.0))


def test_conv2d_with_groups(maker, dense_twin):
    model = nn.Conv2d(4, 6, 3, groups=2)
    check(model, Owner, maker, dense_twin, maker.randn(4, 4, 6, 6, scale=1.0))


def test_conv2d_of_one_image(maker, dense_twin):
    base = nn.Conv2d(3, 5, 3).double()
    entries, model = maker.entries(base, skip=0), DTSModel(copy.deepcopy(base))
    model.load_task("a", entries)
    model.set_task("a")
    x = torch.randn(3, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(model(x), dense_twin(base, [(entries, 1.0)])(x), rtol=1e-9, atol=1e-9)
