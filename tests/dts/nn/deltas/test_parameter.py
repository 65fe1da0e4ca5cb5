"""Deltas of one parameter in every form, through the layers that have it."""

import copy
import random

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dts.adapter.entries import Entry
from dts.nn import DTSEmbedding, DTSLinear, DTSModel
from dts.nn.deltas import ParameterDelta, Piece, Table
from dts_kernels import Routing


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("rows,columns", [(None, None), (3, None), (None, 4), (3, 4)])
@pytest.mark.parametrize("levels", [False, True])
def test_factors_with_gaps(rows, columns, levels, maker):
    linear, embedding = nn.Linear(9, 6).double(), nn.Embedding(6, 9).double()
    factors = maker.factors(6, 9, 3, rows, columns, levels)
    delta = factors.reconstruct(dtype=torch.float64)
    layer = DTSLinear.from_linear(linear)
    layer.load_task("a", factors, maker.randn(6))
    layer.set_task({"a": 0.5})
    x = maker.randn(4, 9, scale=1.0)
    bias = layer.dts.parameters["bias"].raw.tensors[0]
    torch.testing.assert_close(layer(x), linear(x) + 0.5 * (x @ delta.T + bias), rtol=1e-9, atol=1e-9)
    table = DTSEmbedding.from_embedding(embedding)
    table.load(0, {"weight": [Piece("factors", factors)]})
    table.dts.state.set([{0: 1.0}])
    ids = torch.arange(6)
    torch.testing.assert_close(table(ids), embedding.weight + delta, rtol=1e-9, atol=1e-9)
    assert type(linear) is nn.Linear and type(embedding) is nn.Embedding


def test_whole_values_of_tensors_that_the_base_has(maker):
    """They mix as differences do; integers are the task's own."""
    base = nn.Sequential(nn.Linear(9, 6), nn.LayerNorm(6)).double()
    base.register_buffer("steps", torch.tensor([3]))
    whole = {n: maker.randn(*p.shape, scale=1.0) for n, p in base.named_parameters() if n in ("0.bias", "1.weight")}
    entries = {n: Entry(n, n, tuple(t.shape), "value", tensor=t) for n, t in whole.items()}
    entries["steps"] = Entry("steps", "steps", (1,), "value", dtype=torch.int64, tensor=torch.tensor([5]))
    model = DTSModel(copy.deepcopy(base))
    model.load_task("a", entries)
    x = maker.randn(3, 9, scale=1.0)
    found = model(x, tasks=["a", None, {"a": 0.25}])
    for i, gamma in enumerate((1, 0, 0.25)):
        twin = copy.deepcopy(base)
        with torch.no_grad():
            for name, tensor in whole.items():
                twin.get_parameter(name).lerp_(tensor, gamma)
        torch.testing.assert_close(found[i], twin(x[i]), rtol=1e-9, atol=1e-9)
    assert model.merge_and_unload("a").steps == 5


class Made(TorchDispatchMode):
    """Elements that operations write."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        written = func._schema.is_mutable or not func._schema.returns or func._schema.returns[0].alias_info is None
        if written:
            self.elements += sum(t.numel() for t in tree_leaves(out) if isinstance(t, torch.Tensor))
        return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_experts_are_written_in_place_and_the_base_is_left_alone(dtype, maker):
    """Twice as many take twice the work: each once made all of them anew."""
    made = {}
    for experts in (8, 32):
        base, delta = maker.randn(experts, 6, 8).to(dtype), ParameterDelta((experts, 6, 8))
        factors = [maker.factors(6, 8) for _ in range(experts)]
        for e, one in enumerate(factors):
            delta.add(0, Piece("factors", one, e))
        before, routing = base.clone(), Routing.of([{0: 0.5}])
        with Made() as counted:
            full = delta.dense(base, routing)
        made[experts] = counted.elements
        expected = base.float() + 0.5 * torch.stack([one.reconstruct() for one in factors])
        torch.testing.assert_close(full, expected.to(dtype), rtol=1e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-5)
        assert torch.equal(base, before) and full.dtype == dtype
    assert made[32] < 5 * made[8]


def test_a_table_follows_what_comes_and_goes():
    """In any order, of any sizes, within few and beyond many tasks: what a table says that was filled at once."""
    table, there, draw = Table(), dict[int, torch.Tensor](), random.Random(0)
    for step in range(200):
        slot = draw.randrange(24 if step > 100 else 5)
        if draw.random() < 0.7:
            there[slot] = torch.randn(draw.choice([3, 3, 3, 5]), 2)
            table.add(slot, there[slot])
        else:
            there.pop(slot, None)
            table.remove(slot)
        if step % 3:
            continue
        fresh = Table()
        for other in sorted(there, reverse=True):
            fresh.add(other, there[other])
        assert table.filled == fresh.filled and table.longest == fresh.longest
        assert table.tensors.keys() == there.keys()
        assert all(torch.equal(table.tensors[other], tensor) for other, tensor in there.items())
        if there:
            assert torch.equal(table.stack, fresh.stack) and torch.equal(table.length, fresh.length)
            assert torch.equal(table.wide, fresh.stack) and table.size == fresh.size
