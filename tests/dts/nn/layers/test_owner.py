"""Modules that run once a task."""

import copy

import torch
from each_row import check
from torch import nn

from dts.adapter.entries import Entry
from dts.nn import DTSModel, Owner


def test_a_transposed_convolution_runs_once_a_task(maker, dense_twin):
    """It calls itself transposed, and means another thing by it than a weight stored [in, out]."""
    check(nn.ConvTranspose2d(6, 4, 3), Owner, maker, dense_twin, maker.randn(4, 6, 5, 5, scale=1.0))


def test_conv1d_and_batch_norm_run_once_a_task(maker, dense_twin):
    net = nn.Sequential(nn.Conv1d(3, 5, 3), nn.BatchNorm1d(5))
    base = net.double().eval()
    entries = {
        "1.weight": Entry("1.weight", "1.weight", (5,), "delta", tensor=maker.randn(5)),
        "1.running_mean": Entry("1.running_mean", "1.running_mean", (5,), "delta", tensor=maker.randn(5)),
        "1.num_batches_tracked": Entry(
            "1.num_batches_tracked", "1.num_batches_tracked", (), "value", tensor=torch.tensor(7)
        ),
        "0.weight": Entry("0.weight", "0.weight", (5, 3, 3), "experts", factors=[maker.factors(3, 3)] * 5),
    }
    twin = copy.deepcopy(base)
    with torch.no_grad():
        for name in ("1.weight", "0.weight"):
            twin.get_parameter(name).add_(entries[name].delta(dtype=torch.float64))
        twin[1].running_mean += entries["1.running_mean"].tensor
    model = DTSModel(copy.deepcopy(base))
    model.load_task("a", entries)
    x = maker.randn(3, 3, 8, scale=1.0)
    found = model(x, tasks=[None, "a", "a"])
    torch.testing.assert_close(found[:1], base(x[:1]), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found[1:], twin(x[1:]), rtol=1e-9, atol=1e-9)
    assert model.merge_and_unload("a")[1].num_batches_tracked == 7


def test_a_linear_layer_of_another_kind_is_not_taken_for_one(maker, dense_twin):
    """A subclass of `nn.Linear` that computes something else runs its own forward."""

    class Cosine(nn.Linear):
        def forward(self, x):
            normalise = nn.functional.normalize
            return nn.functional.linear(normalise(x, dim=-1), normalise(self.weight, dim=-1))

    check(Cosine(9, 6), Owner, maker, dense_twin, maker.randn(4, 9, scale=1.0))
