"""Linear layers: alone, in a model, of either way to store a weight."""

import copy

import pytest
import torch
from each_row import check
from torch import nn

from dts.adapter.entries import Entry
from dts.nn import DTSLinear, DTSModel


@pytest.mark.parametrize("shape", [(4, 9), (4, 5, 9), (4, 2, 3, 9)])
@pytest.mark.parametrize("bias", [True, False])
def test_linear(shape, bias, maker, dense_twin):
    check(nn.Linear(9, 6, bias=bias), DTSLinear, maker, dense_twin, maker.randn(*shape, scale=1.0))


def test_linear_of_a_batch_in_the_second_axis(maker, dense_twin):
    net = nn.Sequential(nn.Linear(9, 6), nn.LayerNorm(6))

    class SequenceFirst(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, x):
            return self.net(x.transpose(0, 1)).transpose(0, 1)

    check(SequenceFirst(), DTSLinear, maker, dense_twin, maker.randn(4, 4, 9, scale=1.0))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_linear_of_a_vector(dtype, maker, dense_twin):
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(9, 6)).to(dtype)
    model, entries, x = DTSModel(copy.deepcopy(base)), maker.entries(base, skip=0), maker.randn(9, dtype=dtype)
    model.load_task("a", entries)
    expected = dense_twin(base, [(entries, 1.0)])(x)
    found = model(x, tasks="a")
    assert found.shape == (6,)
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0.01)


def test_gradients_where_one_task_changes_some_rows_only(maker):
    """Its product is added to what another one's kernel has returned."""
    linear, x = nn.Linear(12, 8), maker.randn(3, 2, 12, scale=1.0, dtype=torch.float32).requires_grad_()
    layer = DTSLinear.from_linear(linear)
    tasks = {"all": maker.factors(8, 12), "some": maker.factors(8, 12, rows=4, columns=6)}
    for name, factors in tasks.items():
        layer.load_task(name, factors)
    layer.dts.state.set([{0: 1.0}, {1: 1.0}, {}])
    layer(x).sum().backward()
    weights = [linear.weight + one.reconstruct() for one in tasks.values()] + [linear.weight]
    expected = torch.stack([weight.sum(0).detach() for weight in weights])[:, None].expand(3, 2, 12)
    torch.testing.assert_close(x.grad, expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("rows", [1, 2, 4, 12])
def test_linear_in_float32_follows_every_change(rows, maker):
    """The short way to the CPU kernel: switches, other tasks, parameters written in place."""
    linear = nn.Linear(20, 12)
    layer = DTSLinear.from_linear(linear)
    x = maker.randn(rows, 3, 20, scale=1.0, dtype=torch.float32)
    made = {name: (maker.factors(12, 20, 7), maker.randn(12, dtype=torch.float32)) for name in "ab"}

    def check(mixture):
        want = linear(x)
        for name, gamma in mixture.items():
            factors, bias = made[name]
            want = want + gamma * (x @ factors.reconstruct().float().T + bias)
        torch.testing.assert_close(layer(x), want, rtol=1e-3, atol=1e-3 * want.abs().max().item())

    for name, (factors, bias) in made.items():
        layer.load_task(name, factors, bias)
    check({})
    for mixture in ({"a": 1.0}, {"b": 1.0}, {"a": 0.5, "b": -1.0}, {"b": 2.0}):
        layer.set_task(mixture)
        check(mixture)
    linear.bias.add_(1)
    linear.weight.data.mul_(2)
    check({"b": 2.0})
    made["b"] = maker.factors(12, 20, 3), maker.randn(12, dtype=torch.float32)
    layer.load_task("b", *made["b"])
    check({"b": 2.0})


@pytest.mark.parametrize("sizes", [(6, 6), (6, 9)])
def test_a_raw_delta_of_a_weight_stored_in_by_out(sizes, maker):
    conv1d = pytest.importorskip("transformers.pytorch_utils").Conv1D
    base, delta, x = conv1d(sizes[1], sizes[0]).double(), maker.randn(*sizes), maker.randn(4, sizes[0], scale=1.0)
    model = DTSModel(nn.Sequential(copy.deepcopy(base)))
    model.load_task("a", {"0.weight": Entry("0.weight", "0.weight", sizes, "delta", tensor=delta)})
    torch.testing.assert_close(model(x, tasks="a"), base(x) + x @ delta)
    torch.testing.assert_close(model(x, tasks=["a", None, "a", None])[1::2], base(x)[1::2])
    torch.testing.assert_close(model.merge_and_unload("a")(x), base(x) + x @ delta)


def test_a_layer_alone_names_its_tasks(maker):
    layer = DTSLinear.from_linear(nn.Linear(9, 6))
    layer.load_task("a", maker.factors(6, 9))
    with pytest.raises(ValueError, match=r"no task 'b'; this layer has \['a'\]"):
        layer.set_task("b")
    with pytest.raises(ValueError, match=r"\[9, 6\] of task 'c' do not fit the weight \[6, 9\]"):
        layer.load_task("c", maker.factors(9, 6))


def test_a_base_layer_that_computes_in_its_own_way(maker):
    """A quantised base layer: the delta is added to whatever it computes."""

    class Rounded(nn.Module):
        def __init__(self, linear):
            super().__init__()
            self.in_features, self.out_features = linear.in_features, linear.out_features
            self.register_buffer("weight", (linear.weight.detach() * 16).round().to(torch.int8).flatten())

        def forward(self, x):
            return x @ (self.weight.view(self.out_features, self.in_features).to(x.dtype) / 16).T

    base = nn.Sequential(Rounded(nn.Linear(9, 6)))
    factors = maker.factors(6, 9)
    model = DTSModel(copy.deepcopy(base))
    model.load_task("a", {"0.weight": Entry("0.weight", "0.weight", (6, 9), "factors", factors=factors)})
    x = maker.randn(2, 9, scale=1.0)
    delta = factors.reconstruct(dtype=torch.float64)
    torch.testing.assert_close(
        model(x, tasks=["a", None]), base(x) + torch.stack([x[0] @ delta.T, torch.zeros(6)]), rtol=1e-9, atol=1e-9
    )
    with pytest.raises(ValueError, match="quantised weights: 0.weight"):
        model.merge_and_unload("a")
    torch.testing.assert_close(model(x), base(x), rtol=0, atol=0)


def test_autocast(maker):
    base = nn.Linear(9, 6)
    layer = DTSLinear.from_linear(base)
    layer.load_task("a", maker.factors(6, 9))
    layer.set_task("a")
    x = torch.randn(4, 9)
    with torch.autocast("cpu", torch.bfloat16):
        found = layer(x)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), layer(x), rtol=0.03, atol=0.03)
