"""Modules that run once a task."""

import copy

import pytest
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


class Places(nn.Embedding):
    """A table of positions as BART has it: reads its own weight, and gives [1, length, dim] for all rows."""

    def forward(self, ids):
        return super().forward(torch.arange(ids.shape[1]))[None]


class Written(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.places = nn.Embedding(20, 18), Places(10, 18)

    def forward(self, ids):
        return self.words(ids) + self.places(ids)


def test_what_a_module_gives_for_all_rows_is_each_rows_own_task(maker, dense_twin):
    ids = torch.randint(0, 20, (4, 6), generator=torch.Generator().manual_seed(0))
    model = check(Written(), Owner, maker, dense_twin, ids)
    assert model.status()["grouped"] == {}


class Loud(nn.Module):
    """Gives a number of its own beside what it computes, as routers of experts do."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(18, 18))

    def forward(self, x):
        return x @ self.weight, self.weight.sum()


class Summed(nn.Module):
    def __init__(self):
        super().__init__()
        self.loud = Loud()

    def forward(self, x):
        y, number = self.loud(x)
        return y * number


class Counting(nn.Module):
    """Keeps a state that it is given, and writes into it, as RWKV does."""

    def __init__(self):
        super().__init__()
        self.decay, self.weight = nn.Parameter(torch.ones(18)), nn.Parameter(torch.ones(18, 18))

    def forward(self, x, state):
        state[:, 0] = state[:, 0] * self.decay + x @ self.weight
        return state[:, 0]


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell = Counting()

    def forward(self, x):
        state = torch.zeros(x.shape[0], 2, x.shape[-1], dtype=x.dtype)
        for step in x.unbind(1):
            self.cell(step, state)
        return state[:, 0]


class Cell(nn.Module):
    """Keeps its state by itself, as recurrent Gemma does."""

    def __init__(self):
        super().__init__()
        self.decay, self.weight, self.state = nn.Parameter(torch.ones(18)), nn.Parameter(torch.ones(18, 18)), None

    def forward(self, x, first):
        self.state = x @ self.weight if first else self.state * self.decay + x @ self.weight
        return self.state


class Keeping(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell = Cell()

    def forward(self, x):
        return [self.cell(step, i == 0) for i, step in enumerate(x.unbind(1))][-1]


@pytest.mark.parametrize(
    "kind, shape, reason",
    [(Summed, (18,), "without a batch axis"), (Recurrent, (3, 18), "writes"), (Keeping, (3, 18), "keeps a state")],
)
def test_what_rows_have_one_of_makes_the_model_run_once_a_task(kind, shape, reason, maker, dense_twin):
    model = DTSModel(kind().double())
    tasks = {name: maker.entries(model.model, skip=0) for name in "ab"}
    base = copy.deepcopy(model.model)
    for name, entries in tasks.items():
        model.load_task(name, entries)
    x = maker.randn(3, *shape, scale=1.0)
    found = model(x, tasks=["a", None, "b"])
    for i, task in enumerate(["a", None, "b"]):
        expected = dense_twin(base, [(tasks[task], 1.0)] if task else [])(x[i : i + 1])
        torch.testing.assert_close(found[i : i + 1], expected, rtol=1e-9, atol=1e-9)
    assert reason in model.status()["grouped"][next(iter(model.status()["grouped"]))]
