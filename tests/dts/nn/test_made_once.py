"""What a module above the layers made of a task's weights, or answers, is no other task's."""

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
from each_row import loaded, weights
from torch import nn

from dts.nn import DTSModel


class ReadsOnce(nn.Module):
    """Normalises a child's weight in its first call."""

    def __init__(self):
        super().__init__()
        self.linear, self.kept = nn.Linear(18, 18), None

    def forward(self, x):
        if self.kept is None:
            self.kept = F.normalize(self.linear.weight, dim=1)
        return F.linear(x, self.kept, self.linear.bias)


class AsksOnce(nn.Module):
    """Keeps a child's answer, by its dtype."""

    def __init__(self):
        super().__init__()
        self.linear, self.answers = nn.Linear(18, 18), {}

    def forward(self, x):
        if x.dtype not in self.answers:
            self.answers[x.dtype] = self.linear(torch.ones(1, 18, dtype=x.dtype))
        return self.linear(x) + self.answers[x.dtype]


class Counts(ReadsOnce):
    """Keeps complex numbers, counts its calls and knows what inputs were like."""

    def __init__(self):
        super().__init__()
        self.calls, self.norm = 0, nn.BatchNorm1d(18)

    def forward(self, x):
        self.calls += 1
        if self.kept is None:
            self.kept = torch.fft.fft(self.linear.weight)
        return torch.fft.ifft(self.norm(x).to(self.kept.dtype) @ self.kept.T).real


class TellsTheLast(nn.Module):
    """Keeps what somebody may look at, and makes it anew in each call; and a table of no task."""

    def __init__(self):
        super().__init__()
        self.linear, self.last, self.table = nn.Linear(18, 18), None, None

    def forward(self, x):
        if self.table is None:
            self.table = torch.arange(18, dtype=x.dtype)
        self.last = self.linear(x) + self.table
        return self.last


class Settings(dict):
    """As diffusers' configurations: nobody may change it."""

    def _refuse(self, *args, **kwargs):
        raise TypeError("settings do not change")

    update = clear = pop = _refuse


class HasSettings(TellsTheLast):
    def __init__(self):
        super().__init__()
        self.settings, self.linear.settings = Settings(), Settings(scale=1.0)


def made(kind, maker):
    torch.manual_seed(0)
    base = kind().double()
    return base, *loaded(base, maker)


@pytest.mark.parametrize("first", ["a", None, ["a", "b", None]])
@pytest.mark.parametrize("kind, name", [(ReadsOnce, "kept"), (AsksOnce, "answers")])
def test_it_is_refused_in_every_call(kind, name, first, maker):
    _, model, _ = made(kind, maker)
    x, empty = maker.randn(3, 18), copy.copy(getattr(model.model, name))
    for asked in (first, "b", first):
        options = {} if asked is None else {"tasks": asked}
        with torch.no_grad(), warnings.catch_warnings(), pytest.raises(RuntimeError, match=f"^{name}: made of what"):
            warnings.simplefilter("ignore")
            model(x, **options)
        assert getattr(model.model, name) == empty
    merged = model.merge_and_unload("a")
    assert merged(x).shape == (3, 18)


def test_tries_leave_nothing_behind(maker):
    _, model, _ = made(Counts, maker)
    told = pytest.warns(UserWarning, match="tasks change linear, which the first call did not use")
    with torch.no_grad(), told, pytest.raises(RuntimeError, match="^kept: made of what"):
        model(maker.randn(3, 18), tasks="a")
    assert model.model.kept is None and model.model.calls == 1 and model.model.norm.num_batches_tracked == 1


@pytest.mark.parametrize("kind", [TellsTheLast, HasSettings])
def test_what_follows_the_tasks_or_is_of_none_is_kept(kind, maker, dense_twin):
    base, model, tasks = made(kind, maker)
    x = maker.randn(3, 18)
    with torch.no_grad():
        for name in ("a", "b", None):
            expected = dense_twin(base, weights(name, tasks))(x)
            model.set_task(name)
            torch.testing.assert_close(model(x), expected, rtol=1e-9, atol=1e-9)
            torch.testing.assert_close(model.model.last, expected, rtol=1e-9, atol=1e-9)
    assert model.model.table is not None


def test_what_was_made_before_a_task_came_is_told(maker):
    torch.manual_seed(0)
    base = ReadsOnce().double()
    entries, x = maker.entries(base, skip=0), maker.randn(3, 18)
    with torch.no_grad():
        base(x)
        model = DTSModel(base)
        model.load_task("a", entries)
        with pytest.warns(UserWarning, match="tasks change linear, which the first call did not use"):
            model(x, tasks="a")
