"""A tensor of a checkpoint that is several parameters in memory: each has the task's rows of it."""

import copy

import pytest
import torch
from torch import nn

from dts.adapter import Entry
from dts.nn import DTSModel
from dts.sites import Target

HEIGHT, WIDTH = 7, 8  # no run begins at a block of samples


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(WIDTH, HEIGHT) for _ in range(3))

    def forward(self, x):
        return torch.cat([self.q(x), self.k(x), self.v(x)], -1)


def rename(name):
    kind = name.partition(".")[2]
    first, *others = [Target(f"{part}.{kind}", piece=i, pieces=3) for i, part in enumerate("qkv")]
    return Target(first.name, piece=0, pieces=3, beside=tuple(others))


def entries(maker):
    """With components, samples, kept rows and columns, and a bias."""
    found = [
        maker.factors(3 * HEIGHT, WIDTH),
        maker.factors(3 * HEIGHT, WIDTH, rows=11, columns=5),
    ]
    for factors in found:
        weight = Entry("qkv.weight", "qkv.weight", (3 * HEIGHT, WIDTH), "factors", factors=factors)
        bias = Entry("qkv.bias", "qkv.bias", (3 * HEIGHT,), "delta", tensor=maker.randn(3 * HEIGHT))
        yield {"qkv.weight": weight, "qkv.bias": bias}


@torch.no_grad()
def test_each_row_has_its_task(maker, monkeypatch):
    monkeypatch.setattr("dts.nn.survey.renamer", lambda model, known: rename)
    torch.manual_seed(0)
    base = Attention().double()
    model, dense = DTSModel(copy.deepcopy(base)), {None: base}
    for seed in range(3):  # with samples and without
        for kind, task in enumerate(entries(maker)):
            name = f"{seed}{kind}"
            model.load_task(name, task)
            dense[name] = twin = copy.deepcopy(base)
            for part in ("weight", "bias"):
                delta = task[f"qkv.{part}"].delta(dtype=torch.float64).chunk(3)
                for one, own in zip((twin.q, twin.k, twin.v), delta):
                    getattr(one, part).add_(own)
    x, tasks = maker.randn(len(dense), 4, WIDTH, scale=1.0), list(dense)
    found = model(x, tasks=tasks)
    for row, task in enumerate(tasks):
        torch.testing.assert_close(found[row], dense[task](x[row]), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(model(x, tasks=task), dense[task](x), rtol=1e-9, atol=1e-9)
    merged = model.merge_and_unload("01")
    torch.testing.assert_close(merged(x), dense["01"](x), rtol=1e-9, atol=1e-9)


def test_what_does_not_fit_is_said(maker, monkeypatch):
    monkeypatch.setattr("dts.nn.survey.renamer", lambda model, known: rename)
    model = DTSModel(Attention().double())
    wrong = Entry("qkv.bias", "qkv.bias", (3 * HEIGHT + 1,), "delta", tensor=maker.randn(3 * HEIGHT + 1))
    with pytest.raises(ValueError, match=r"the adapter is for \[22\], the model has \[21\]"):
        model.load_task("a", {"qkv.bias": wrong})
    whole = Entry("qkv.bias", "qkv.bias", (3 * HEIGHT,), "value", tensor=maker.randn(3 * HEIGHT))
    with pytest.raises(ValueError, match="3 parameters, and an entry of kind value is not taken apart: dts apply"):
        model.load_task("a", {"qkv.bias": whole})
    assert model.tasks == []
