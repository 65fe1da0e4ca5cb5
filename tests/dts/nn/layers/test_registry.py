"""A kind of layer that this package does not have: one class with one line of registration."""

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn

from dts.nn import DTSLinear, DTSModel, Owner
from dts.nn.layers import Layer, LinearForward, base_class, kind_of, register, registry


class Projection(nn.Module):
    """Another library's linear layer: no subclass of torch's, its weight stored [in, out]."""

    def __init__(self, inner: int, outer: int):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(inner, outer)), nn.Parameter(torch.randn(outer))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight + self.bias


class DTSProjection(LinearForward):
    transposed = True


class DTSConv1d(Layer, nn.Conv1d):
    """The delta is a linear layer on the windows that the convolution sees (stride 1, no padding)."""

    @classmethod
    def supports(cls, module, pieces):
        kinds = {p.kind for parts in pieces.values() for p in parts}
        return set(pieces) <= {"weight"} and kinds <= {"factors"}

    def forward(self, x: Tensor) -> Tensor:
        if not self.dts.routed():
            return self.base_forward(x)
        x, routing = self.dts.enter(x)
        y, weight = self.base_forward(x), self.dts.get("weight")
        if weight is not None and weight.plain is not None:
            windows = x.unfold(2, self.kernel_size[0], 1).transpose(1, 2).flatten(2)  # [batch, positions, in * kernel]
            y = weight.plain.add_product(windows, y.mT, routing).mT
        return self.dts.leave(y)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(3, 8, 4)
        self.project = Projection(8, 6)
        self.plain = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.plain(self.project(self.conv(x).mT))


@pytest.fixture
def kinds(monkeypatch):
    """The two kinds, registered for the time of a test."""
    monkeypatch.setattr(registry, "_kinds", list(registry._kinds))
    register(nn.Conv1d)(DTSConv1d)
    register(Projection)(DTSProjection)


@pytest.fixture
def setting(maker):
    torch.manual_seed(0)
    net = Net().double()
    tasks = {name: maker.entries(net, skip=0) for name in "ab"}
    for name in tasks:  # a convolution's [out, in, kernel] is one matrix
        tasks[name]["conv.weight"] = maker.entry("conv.weight", net.conv.weight.detach().flatten(1), skip=0)
        tasks[name]["conv.weight"].shape = tuple(net.conv.weight.shape)
        del tasks[name]["conv.bias"]
    return net, tasks, torch.randn(4, 3, 9, dtype=torch.float64)


def loaded(net: nn.Module, tasks: dict) -> DTSModel:
    model = DTSModel(copy.deepcopy(net))
    for name, entries in tasks.items():
        model.load_task(name, entries)
    return model


def check(model: DTSModel, setting, dense_twin) -> None:
    net, tasks, x = setting
    wanted = {name: dense_twin(net, [(entries, 1.0)])(x) for name, entries in tasks.items()} | {None: net(x)}
    close = lambda a, b: torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)  # noqa: E731
    for name, expected in wanted.items():
        close(model(x, tasks=[name] * 4), expected)
    rows = ["a", None, "b", "a"]
    close(model(x, tasks=rows), torch.stack([wanted[name][i] for i, name in enumerate(rows)]))
    mixed = dense_twin(net, [(tasks["a"], 0.7), (tasks["b"], 0.3)])(x)
    close(model(x, tasks={"a": 0.7, "b": 0.3}), mixed)


def test_a_new_kind_runs_rows_of_several_tasks_at_once(kinds, setting, dense_twin):
    model = loaded(*setting[:2])
    assert model.status()["layers"] == {"DTSConv1d": 1, "DTSProjection": 1, "DTSLinear": 1}
    check(model, setting, dense_twin)
    assert not model.status()["once_a_task"] and not model.status()["grouped"]
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        check(copied, setting, dense_twin)
    net, tasks, x = setting
    torch.testing.assert_close(model.merge_and_unload("a")(x), dense_twin(net, [(tasks["a"], 1.0)])(x))
    assert type(model.model.conv) is nn.Conv1d and type(model.model.project) is Projection


def test_without_the_kind_the_layers_run_once_a_task(setting, dense_twin):
    model = loaded(*setting[:2])
    assert model.status()["once_a_task"] == ["conv", "project"]
    check(model, setting, dense_twin)


def test_a_kind_says_how_its_weight_is_stored(kinds, setting, maker):
    """A head of another number of outputs fits along the axis of the outputs only."""
    net, _, x = setting
    model = DTSModel(nn.Sequential(net.conv, nn.Flatten(1), Projection(48, 6).double()))
    with pytest.raises(ValueError, match="outputs"):
        model.load_task("a", {"2.weight": maker.head("2.weight", 50, 6)})
    head = {"2.weight": maker.head("2.weight", 48, 7), "2.bias": maker.head("2.bias", 7)}
    model.load_task("a", head)
    expected = net.conv(x).flatten(1) @ head["2.weight"].tensor + head["2.bias"].tensor
    torch.testing.assert_close(model(x, tasks="a"), expected)
    assert [row.shape[-1] for row in model.task_logits(model(x, tasks="a"), tasks="a")] == [7] * 4


def test_pieces_that_a_kind_does_not_support_go_to_the_fallback(kinds, setting, maker):
    net, tasks, _ = setting
    model = loaded(net, {"a": tasks["a"] | {"conv.bias": maker.entry("conv.bias", net.conv.bias, skip=0)}})
    assert model.status()["once_a_task"] == ["conv"] and isinstance(model.model.conv, Owner)


def test_modules_that_only_look_like_a_kind_are_none(maker, dense_twin):
    """A module with a linear layer's sizes, and no weight or none yet."""

    class Adapted(nn.Module):
        def __init__(self, without: str):
            super().__init__()
            self.in_features, self.out_features, self.inner = 5, 5, nn.Linear(5, 5)
            if without == "value":
                self.register_parameter("weight", None)

        def forward(self, x):
            return self.inner(x)

    base = nn.Sequential(Adapted("attribute"), Adapted("value")).double()
    entries, model, x = maker.entries(base, skip=0), DTSModel(copy.deepcopy(base)), maker.randn(3, 5, scale=1.0)
    model.load_task("a", entries)
    assert {kind_of(module) for module in base} == {Layer} and model.status()["layers"] == {"DTSLinear": 2}
    torch.testing.assert_close(model(x, tasks="a"), dense_twin(base, [(entries, 1.0)])(x))


def test_the_kind_registered_last_is_asked_first(kinds):
    class Other(LinearForward):
        pass

    linear = nn.Linear(2, 2)
    assert kind_of(linear) is DTSLinear and kind_of(nn.ReLU()) is Layer
    register(when=lambda module: issubclass(base_class(module), nn.Linear))(Other)
    assert kind_of(linear) is Other
