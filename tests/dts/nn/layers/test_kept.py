"""Modules that make something of their weights once: no task gets what was made with another one's."""

import copy
import functools

import pytest
import torch
import torch.nn.functional as F
from each_row import weights
from torch import nn

from dts.adapter.entries import Entry
from dts.nn import DTSModel


class InField(nn.Module):
    """A normalised weight, in a field."""

    def __init__(self):
        super().__init__()
        self.weight, self.kept = nn.Parameter(torch.randn(18, 18)), None

    def forward(self, x):
        if self.kept is None:
            self.kept = F.normalize(self.weight, dim=1)
        return x @ self.kept.T


class InFieldAndTells(InField):
    """Beside its last answer, for which it runs once a task: the base's weights are looked at first, by themselves."""

    def forward(self, x):
        self.last = super().forward(x)
        return self.last


class ByDeviceAndTells(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight, self.kept = nn.Parameter(torch.randn(18, 18)), {}

    def forward(self, x):
        if x.device not in self.kept:
            self.kept[x.device] = F.normalize(self.weight, dim=1)
        self.last = x @ self.kept[x.device].T
        return self.last


class InBuffer(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(18, 18))
        self.register_buffer("kept", None, persistent=False)

    def forward(self, x):
        if self.kept is None:
            self.kept = F.normalize(self.weight, dim=1)
        return x @ self.kept.T


class ByDevice(nn.Module):
    """As LeViT keeps the biases of its places."""

    def __init__(self):
        super().__init__()
        self.biases, self.cache = nn.Parameter(torch.randn(18)), {}
        self.register_buffer("index", torch.arange(18).flip(0), persistent=False)

    def forward(self, x):
        if x.device not in self.cache:
            self.cache[x.device] = self.biases[self.index]
        return x + self.cache[x.device]


class ANumber(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight, self.scale = nn.Parameter(torch.randn(18, 18)), None

    def forward(self, x):
        if self.scale is None:
            self.scale = float(self.weight.abs().max())
        return x @ self.weight.T / self.scale


class Flagged(nn.Module):
    """Says beside it that it was made."""

    def __init__(self):
        super().__init__()
        self.weight, self.done = nn.Parameter(torch.randn(18, 18)), False

    def forward(self, x):
        if not self.done:
            self.kept, self.done = F.normalize(self.weight, dim=1), True
        return x @ self.kept.T


class Property(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(18, 18))

    @functools.cached_property
    def kept(self):
        return F.normalize(self.weight, dim=1)

    def forward(self, x):
        return x @ self.kept.T


class Spectrum(nn.Module):
    """A filter, as what it is a convolution with: its imaginary part alone differs between tasks."""

    def __init__(self):
        super().__init__()
        self.weight, self.kept = nn.Parameter(torch.randn(18)), None

    def forward(self, x):
        if self.kept is None:
            self.kept = torch.complex(torch.ones_like(self.weight), self.weight.detach().clone())
        return torch.view_as_real(x * self.kept).flatten(-2)


class Several(nn.Module):
    """Two things, in a tuple."""

    def __init__(self):
        super().__init__()
        self.weight, self.kept = nn.Parameter(torch.randn(18, 18)), None

    def forward(self, x):
        if self.kept is None:
            self.kept = F.normalize(self.weight, dim=1), self.weight.sum(1)
        return x @ self.kept[0].T + self.kept[1]


class OfALinear(nn.Linear):
    kept = None

    def __init__(self):
        super().__init__(18, 18)

    def forward(self, x):
        if self.kept is None:
            self.kept = F.normalize(self.weight, dim=1)
        return F.linear(x, self.kept, self.bias)


KINDS = [
    InField,
    InFieldAndTells,
    ByDeviceAndTells,
    InBuffer,
    ByDevice,
    ANumber,
    Flagged,
    Property,
    Spectrum,
    Several,
    OfALinear,
]


@pytest.mark.parametrize("mixed_first", [False, True], ids=["a task first", "all tasks first"])
@pytest.mark.parametrize("before", ["never called", "called before"])
@pytest.mark.parametrize("kind", KINDS)
def test_each_task_has_its_own(kind, before, mixed_first, maker, dense_twin):
    if kind is Flagged and before == "called before":
        pytest.skip("without its flag, what it made cannot be made again")
    torch.manual_seed(0)
    base = nn.Sequential(kind()).double()
    tasks = {name: maker.entries(base, skip=0) for name in "ab"}
    clean, x = copy.deepcopy(base), maker.randn(4, 18, scale=1.0)
    with torch.no_grad():
        if before == "called before":
            base(x)
        model = DTSModel(base)
        for name, entries in tasks.items():
            model.load_task(name, entries)
        expected = {name: dense_twin(clean, weights(name, tasks)) for name in ("a", "b", None)}
        given = ["a", None, "b", "a"]
        for together in (mixed_first, not mixed_first):
            found = model(x, tasks=given) if together else None
            for i, name in enumerate(given):
                wanted = expected[name](x)
                one = model(x, tasks=name) if found is None else found[i : i + 1]
                torch.testing.assert_close(one, wanted if found is None else wanted[i : i + 1], rtol=1e-9, atol=1e-9)


def test_a_task_that_changes_something_else_is_looked_at_again(maker):
    """What nothing changes may be kept; a task that changes it, too, comes later."""

    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two, self.kept = nn.Parameter(torch.randn(18)), nn.Parameter(torch.randn(18)), None

        def forward(self, x):
            if self.kept is None:
                self.kept = self.two * 2
            return x * self.one + self.kept

    model, x = DTSModel(Both().double()), maker.randn(2, 18)
    one, two = (Entry(name, name, (18,), "delta", tensor=maker.randn(18)) for name in ("one", "two"))
    with torch.no_grad():
        model.load_task("a", {"one": one})
        model(x, tasks="a")
        assert model.model.kept is not None
        model.load_task("b", {"two": two})
        found = model(x, tasks="b")
        torch.testing.assert_close(
            found, x * model.model._parameters["one"] + 2 * (model.model._parameters["two"] + two.tensor)
        )


def test_what_inputs_have_a_part_in_stays(maker):
    """A recurrent state, a counter, and sizes that were seen."""

    class Cell(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.state, self.calls, self.sizes = nn.Parameter(torch.randn(18, 18)), None, 0, set()

        def forward(self, x):
            self.calls += 1
            self.sizes.add(x.shape[0])
            self.state = x @ self.weight if self.state is None else self.state / 2 + x @ self.weight
            return self.state

    base = Cell().double()
    model, twin = DTSModel(base), copy.deepcopy(base)
    entries = maker.entries(base, skip=0)
    model.load_task("a", entries)
    twin.weight.data += entries["weight"].delta(dtype=torch.float64)
    model.set_task("a")
    with torch.no_grad():
        for _ in range(3):
            x = maker.randn(2, 18)
            torch.testing.assert_close(model(x), twin(x), rtol=1e-9, atol=1e-9)
    assert base.calls == 3 and base.sizes == {2}


def test_a_state_of_one_token_a_row_stays(maker):
    """Ids that are the same in either order are other inputs, too, when it is tried what is made of weights."""

    class Last(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.state = nn.Parameter(torch.randn(18, 18)), None

        def forward(self, ids):
            now = F.embedding(ids, self.table).mean(1)
            self.state = now if self.state is None else self.state / 2 + now
            return self.state

    base = Last().double()
    model, twin, entries = DTSModel(base), copy.deepcopy(base), maker.entries(base, skip=0)
    model.load_task("a", entries)
    twin.table.data += entries["table"].delta(dtype=torch.float64)
    with torch.no_grad():
        for token in (0, 3, 5):
            ids = torch.full((2, 1), token)
            torch.testing.assert_close(model(ids, tasks="a"), twin(ids), rtol=1e-9, atol=1e-9)


def test_an_object_among_the_arguments_is_copied_for_a_try(maker, dense_twin):
    class Calls:
        count = 0

    class Counting(InField):
        def forward(self, x, calls):
            calls.count += 1
            return super().forward(x)

    base = Counting().double()
    clean, tasks = copy.deepcopy(base), {name: maker.entries(base, skip=0) for name in "ab"}
    model, calls, x = DTSModel(base), Calls(), maker.randn(4, 18)
    with torch.no_grad():
        for name, entries in tasks.items():
            model.load_task(name, entries)
        for name in "ab":
            expected = dense_twin(clean, weights(name, tasks))(x, Calls())
            torch.testing.assert_close(model(x, calls, tasks=name), expected, rtol=1e-9, atol=1e-9)
    assert calls.count == 2


class Normed(nn.Module):
    """With statistics and counts of its own and of a child, and a weight that it makes once."""

    def __init__(self):
        super().__init__()
        self.weight, self.scale, self.kept, self.inner = nn.Parameter(torch.randn(18)), 2.0, None, nn.BatchNorm1d(18)
        self.inner.calls = 0
        self.inner.register_forward_pre_hook(self.count)
        self.register_buffer("seen", torch.zeros(()))

    @staticmethod
    def count(inner, given):
        inner.calls += 1

    def forward(self, x):
        self.seen += 1
        if self.kept is None:
            self.kept = self.weight * 2
        return self.inner(x) * self.kept * self.scale


@pytest.mark.parametrize("kind", [Normed, lambda: nn.BatchNorm1d(18)], ids=["of a child", "of its own"])
def test_running_statistics_are_of_each_call_once(kind, maker):
    base = nn.Sequential(kind()).double().train()
    changed = [name for name, _ in base.named_parameters() if "inner" not in name]
    model, twin, x = DTSModel(base), copy.deepcopy(base), maker.randn(8, 18, scale=1.0) + 1
    entries = {name: Entry(name, name, (18,), "delta", tensor=maker.randn(18)) for name in changed}
    model.load_task("a", entries)
    with torch.no_grad():
        for name, entry in entries.items():
            twin.get_parameter(name).add_(entry.tensor)
        torch.testing.assert_close(model(x, tasks="a"), twin(x), rtol=1e-9, atol=1e-9)
    for (name, found), (_, expected) in zip(base.named_buffers(), twin.named_buffers()):
        torch.testing.assert_close(found, expected, msg=lambda text, name=name: f"{name}: {text}")
    if kind is Normed:
        assert base[0].inner.calls == 1
