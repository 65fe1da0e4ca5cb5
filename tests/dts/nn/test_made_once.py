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


class Flagged(nn.Module):
    """Writes into a buffer that has numbers already, and says so beside it."""

    def __init__(self):
        super().__init__()
        self.linear, self.ready = nn.Linear(18, 18), False
        self.register_buffer("table", torch.zeros(18, 18), persistent=False)

    def forward(self, x):
        if not self.ready:
            with torch.no_grad():
                self.table[:] = F.normalize(self.linear.weight, dim=1)
            self.ready = True
        return F.linear(x, self.table, self.linear.bias)


class FlaggedByATensor(Flagged):
    """As quantisers do; in a field, by its data."""

    def __init__(self):
        super().__init__()
        del self.table
        self.table = torch.ones(18, 18, dtype=torch.float64)
        self.register_buffer("made", torch.tensor(0, dtype=torch.uint8))

    def forward(self, x):
        if not self.made:
            self.table.data[:] = F.normalize(self.linear.weight, dim=1)
            self.made.fill_(1)
        return F.linear(x, self.table, self.linear.bias)


class Helper:
    table, seen = None, 0


class HasHelpers(nn.Module):
    """Keeps what it makes in an object of its own, in a list."""

    def __init__(self):
        super().__init__()
        self.linear, self.helpers = nn.Linear(18, 18), [Helper()]

    def forward(self, x):
        own = self.helpers[0]
        own.seen += 1
        if own.table is None:
            own.table = F.normalize(self.linear.weight, dim=1)
        return F.linear(x, own.table, self.linear.bias)


class OwnFlagged(nn.Module):
    """Of its own weight, which layers forget only where nothing was before."""

    def __init__(self):
        super().__init__()
        self.weight, self.ready = nn.Parameter(torch.randn(18, 18)), False
        self.register_buffer("table", torch.zeros(18, 18), persistent=False)

    def forward(self, x):
        if not self.ready:
            self.table.copy_(F.normalize(self.weight, dim=1).detach())
            self.ready = True
        return x @ self.table.T


class OwnHelper(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight, self.helper = nn.Parameter(torch.randn(18, 18)), Helper()

    def forward(self, x):
        if self.helper.table is None:
            self.helper.table = F.normalize(self.weight, dim=1)
        return x @ self.helper.table.T


class LaidOut(nn.Module):
    """Puts the rows of its weight into another order in its first call, as kernels want it."""

    def __init__(self):
        super().__init__()
        self.weight, self.ready = nn.Parameter(torch.randn(18, 18)), False

    def forward(self, x):
        if not self.ready:
            self.weight.data, self.ready = self.weight.data.roll(1, 0), True
        return x @ self.weight.roll(-1, 0)


class FirstInputs(nn.Module):
    """Centres its features by the first batch, as ActNorm does."""

    def __init__(self):
        super().__init__()
        self.linear, self.ready = nn.Linear(18, 18), False
        self.register_buffer("mean", torch.zeros(18))

    def forward(self, x):
        y = self.linear(x)
        if not self.ready:
            self.mean, self.ready = y.mean(0).detach(), True
        return y - self.mean


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
@pytest.mark.parametrize(
    "kind, name",
    [
        (ReadsOnce, "kept"),
        (AsksOnce, "answers"),
        (Flagged, "table"),
        (FlaggedByATensor, "table"),
        (HasHelpers, "helpers.table"),
        (OwnFlagged, "table"),
        (OwnHelper, "helper.table"),
        (FirstInputs, "mean"),
    ],
)
def test_it_is_refused_in_every_call(kind, name, first, maker, dense_twin):
    base, model, tasks = made(kind, maker)
    x = maker.randn(3, 18)
    for asked in (first, "b", first):
        options = {} if asked is None else {"tasks": asked}
        with torch.no_grad(), warnings.catch_warnings(), pytest.raises(RuntimeError, match=f"^{name}: made of what"):
            warnings.simplefilter("ignore")
            model(x, **options)
    with torch.no_grad():  # and all is as it was
        expected = dense_twin(base, weights("a", tasks))(x)
        torch.testing.assert_close(model.merge_and_unload("a")(x), expected, rtol=1e-9, atol=1e-9)


def test_what_first_inputs_made_before_tasks_came_is_every_tasks(maker, dense_twin):
    torch.manual_seed(0)
    base, x = FirstInputs().double(), maker.randn(5, 18, scale=1.0)
    base(x)
    model, tasks = loaded(base, maker)
    with torch.no_grad():
        for name in "ab":
            expected = dense_twin(base, weights(name, tasks))(x[:3])
            torch.testing.assert_close(model(x[:3], tasks=name), expected, rtol=1e-9, atol=1e-9)


def test_tries_leave_nothing_behind(maker):
    _, model, _ = made(Counts, maker)
    told = pytest.warns(UserWarning, match="tasks change linear, which the first call did not use")
    with torch.no_grad(), told, pytest.raises(RuntimeError, match="^kept: made of what"):
        model(maker.randn(3, 18), tasks="a")
    assert model.model.kept is None and model.model.calls == 0 and model.model.norm.num_batches_tracked == 0


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


def test_a_parameter_that_a_first_call_lays_out_anew_is_laid_out_once(maker, dense_twin):
    """Once, and as its flag says: what locates rows takes neither back without the other."""
    base = torch.nn.Sequential(nn.Linear(18, 18), LaidOut(), nn.Linear(18, 18)).double().eval()
    model, tasks = DTSModel(copy.deepcopy(base)), {"a": maker.entries(base, skip=0, only="0.")}
    model.load_task("a", tasks["a"])
    x = torch.randn(2, 18, dtype=torch.float64)
    found = model(x, tasks=["a", None])
    assert not model.status()["once_a_task"]
    for i, task in enumerate(("a", None)):
        torch.testing.assert_close(found[i : i + 1], dense_twin(base, weights(task, tasks))(x[i : i + 1]))


def test_the_cache_of_parametrised_weights_is_of_one_call(maker, dense_twin):
    """Of torch, which a user may hold open over many calls."""
    base = torch.nn.Sequential(nn.Linear(18, 18), nn.Linear(18, 18)).double().eval()
    nn.utils.parametrizations.weight_norm(base[0])
    model, tasks = DTSModel(copy.deepcopy(base)), {t: maker.entries(base, skip=0) for t in "ab"}
    for name, entries in tasks.items():
        model.load_task(name, entries)
    x = torch.randn(3, 18, dtype=torch.float64)
    wanted = {task: dense_twin(base, weights(task, tasks))(x) for task in ("a", "b", None)}
    with nn.utils.parametrize.cached():
        for task in ("a", "b", None):
            torch.testing.assert_close(model(x, tasks=task), wanted[task])
        found = model(x, tasks=["a", None, "b"])
        for i, task in enumerate(("a", None, "b")):
            torch.testing.assert_close(found[i], wanted[task][i])
        model.set_task("a")
        torch.testing.assert_close(model(x), wanted["a"])
        weight = model.model[0].weight
        assert model.model[0].weight is weight  # which is the user's own cache, as ever


class TellsAndGoesOn(nn.Module):
    """Keeps its last answer, so that it is tried whether it follows the tasks."""

    def __init__(self):
        super().__init__()
        self.inner, self.outer, self.table = nn.Linear(18, 18), nn.Linear(18, 18), None

    def forward(self, x):
        self.table = self.inner(x)
        return self.outer(self.table)


class Features:
    def __init__(self):
        self.last = None

    def keep(self, module, args, output):
        self.last = output


SEEN = {}


def global_hook(module, args, output):
    SEEN["last"] = output


def in_a_dict():
    seen = {}
    return lambda module, args, output: seen.update(last=output), lambda: seen["last"]


def in_a_list():
    seen = []
    return lambda module, args, output: seen.append(output), lambda: seen[-1]


def in_a_variable():
    last = None

    def keep(module, args, output):
        nonlocal last
        last = output

    return keep, lambda: last


def in_an_object():
    features = Features()
    return features.keep, lambda: features.last


def in_an_object_of_a_variable():
    features = Features()
    return lambda module, args, output: setattr(features, "last", output), lambda: features.last


def in_a_global():
    return global_hook, lambda: SEEN["last"]


@pytest.mark.parametrize(
    "kept", [in_a_dict, in_a_list, in_a_variable, in_an_object, in_an_object_of_a_variable, in_a_global]
)
def test_what_a_hook_saw_last_is_of_the_call_that_was_made(kept, maker, dense_twin):
    base = TellsAndGoesOn().double().eval()
    model, tasks = DTSModel(copy.deepcopy(base)), {t: maker.entries(base, skip=0) for t in "ab"}
    for name, entries in tasks.items():
        model.load_task(name, entries)
    hook, last = kept()
    model.model.inner.register_forward_hook(hook)
    x = torch.randn(3, 18, dtype=torch.float64)
    for task in ("a", "b"):
        model(x, tasks=task)
        torch.testing.assert_close(last(), dense_twin(base, weights(task, tasks)).inner(x))


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
