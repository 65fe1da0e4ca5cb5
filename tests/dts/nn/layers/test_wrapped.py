"""Forwards that something put in front of a layer's own before tasks came: they call the layer's."""

import copy
import functools
import types

import pytest
import torch
from torch import nn

from dts.nn import DTSModel


class Reference:
    """As hooks of diffusers keep what they call."""

    def __init__(self, forward):
        self.forward = forward


def hooked(layer):
    """As accelerate does it."""
    layer._old_forward = layer.forward
    layer.forward = functools.update_wrapper(
        functools.partial(lambda module, *args: module._old_forward(*args), layer), layer._old_forward
    )


def given_back(layer):
    """As accelerate leaves a layer that it took its hooks off."""
    layer.forward = layer.forward


def closed_over(layer):
    before = layer.forward
    layer.forward = lambda x: before(x)


def by_default(layer):
    layer.forward = lambda x, before=layer.forward: before(x)


def partially(layer):
    layer.forward = functools.partial(lambda before, x: before(x), layer.forward)


def referred(layer):
    reference = Reference(layer.forward)

    def forward(module, x):
        return reference.forward(x)

    layer.forward = functools.partial(forward, layer)


def twice(layer):
    referred(layer)
    closed_over(layer)


def described(layer):
    """As torchao has a layer tell of its weight: what is bound is no function."""
    layer.extra_repr = types.MethodType(functools.partial(lambda module, what: what, what="codes"), layer)


WRAPPERS = [described, hooked, given_back, closed_over, by_default, partially, referred, twice]
ROWS = ["a", None, "b"]


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.first, self.norm, self.last = (
            nn.Embedding(9, 8),
            nn.Linear(8, 8),
            nn.LayerNorm(8),
            nn.Linear(8, 5),
        )

    def forward(self, ids):
        return self.last(self.norm(torch.tanh(self.first(self.table(ids)))))


@pytest.mark.parametrize("wrap", WRAPPERS)
def test_rows_go_through_together(wrap, maker, dense_twin):
    base = Net().double().eval()
    tasks = {name: maker.entries(base, skip=0) for name in "ab"}
    wanted = {name: dense_twin(base, [(entries, 1.0)]) for name, entries in tasks.items()} | {None: base}
    wrapped = copy.deepcopy(base)
    for layer in wrapped.children():
        wrap(layer)
    model, ids = DTSModel(wrapped), torch.arange(6).view(3, 2)
    for name, entries in tasks.items():
        model.load_task(name, entries)
    for _ in range(2):
        found = model(ids, tasks=ROWS)
        for i, task in enumerate(ROWS):
            torch.testing.assert_close(found[i], wanted[task](ids)[i])
    torch.testing.assert_close(model(ids, tasks="b"), wanted["b"](ids))
    assert not model.status()["grouped"]
    torch.testing.assert_close(model.merge_and_unload("a")(ids), wanted["a"](ids))


@pytest.mark.parametrize("wrap", WRAPPERS)
def test_wrapped_under_tasks_and_run_without(wrap, maker, dense_twin):
    """What was taken of a layer with tasks is called when it has none, and when it is a layer of another kind."""
    base = Net().double().eval()
    entries, ids = maker.entries(base, skip=0), torch.arange(6).view(3, 2)
    wanted = dense_twin(base, [(entries, 1.0)])(ids)
    model = DTSModel(copy.deepcopy(base))
    model.load_task("a", entries)
    for layer in model.model.children():
        wrap(layer)
    torch.testing.assert_close(model(ids, tasks="a"), wanted)
    torch.testing.assert_close(model.merge_and_unload("a")(ids), wanted)


def test_a_forward_that_somebody_gave_the_layer_stays(maker, dense_twin):
    def forward(self, x):
        return nn.functional.linear(x, self.weight, self.bias).sin()

    base = Net().double().eval()
    base.first.forward = types.MethodType(forward, base.first)
    entries, ids = maker.entries(base, skip=0), torch.arange(6).view(3, 2)
    twin = dense_twin(base, [(entries, 1.0)])
    twin.first.forward = types.MethodType(forward, twin.first)
    model = DTSModel(base)
    model.load_task("a", entries)
    torch.testing.assert_close(model(ids, tasks=["a"] * 3), twin(ids))
