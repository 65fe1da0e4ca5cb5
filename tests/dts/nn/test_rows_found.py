"""Rows of several tasks in models that do not keep them where two rows show them: each has its own task's answer."""

import warnings
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from each_row import TASKS, loaded, weights
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class Two(nn.Module):
    """Two linear layers; a subclass says what it does with them."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(8, 8), nn.Linear(8, 8)


class NoPadding(Two):
    """Computes with the tokens that are some, side by side, as kernels for rows of any length want them."""

    def forward(self, x, mask):
        y = torch.zeros_like(x)
        y[mask.bool()] = self.two(torch.tanh(self.one(x[mask.bool()])))
        return y


class NoPaddingByIds(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.one = nn.Embedding(9, 8), nn.Linear(8, 8)

    def forward(self, ids):
        y = torch.zeros(*ids.shape, 8, dtype=self.one.bias.dtype)
        y[ids != 0] = self.one(self.table(ids[ids != 0]))
        return y


class Experts(nn.Module):
    """Each token goes to one, which others of the batch may not."""

    def __init__(self):
        super().__init__()
        self.table, self.router = nn.Embedding(50, 8), nn.Linear(8, 4, bias=False)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.GELU()) for _ in range(4))

    def forward(self, ids):
        x = self.table(ids).flatten(0, 1)
        chosen, y = self.router(x).argmax(-1), torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            tokens = (chosen == number).nonzero()[:, 0]
            if len(tokens):
                y.index_add_(0, tokens, expert(x[tokens]))
        return y.view(*ids.shape, 8)


class EverySecond(Two):
    """Rows in an order that begins as the batch's of two."""

    def forward(self, x):
        order = torch.cat([torch.arange(0, len(x), 2), torch.arange(1, len(x), 2)])
        return self.two(self.one(x)[order])[order.argsort()]


class ByLength(Two):
    def forward(self, x):
        return self.one(x) if x.shape[1] > 2 else self.two(x)


class Stateful(Two):
    def __init__(self):
        super().__init__()
        self.state, self.calls = 0, 0

    def forward(self, x):
        self.calls += 1
        self.state = self.one(x) * self.calls + self.state / 2
        return self.state


class AnAxis(Two):
    """Attends to what the rows share, of which there are as many as rows."""

    def forward(self, x, shared):
        return (self.one(x) @ self.one(shared).T).softmax(-1) @ self.two(shared)


class Masked(Two):
    """Its mask, of positions, is as long as the batch."""

    def forward(self, x, mask):
        return (F.linear(x, self.one.weight) @ x.mT + mask).softmax(-1) @ self.two(x)


class OverTheBatch(Two):
    def forward(self, x):
        return self.two(self.one(x).softmax(0))


class OfAMapping(Two):
    """Once a task, by the first layer."""

    def forward(self, x, more):
        return F.linear(x, self.one.weight) + self.two(more["there"][0]) * more["scale"]


class OfAList(Two):
    def forward(self, x, more):
        return F.linear(x, self.one.weight) + torch.stack([self.two(one).mean(0) for one in more])


@dataclass
class Answer:
    logits: Tensor
    name: str = "answer"


class AsADataClass(Two):
    def forward(self, x):
        return Answer(F.linear(x, self.one.weight))


def made(kind, maker):
    torch.manual_seed(0)
    base = kind().double()
    return base, *loaded(base, maker)


def compare(found, alone, asked):
    """found: of the batch;  alone: (the row's place, its task) -> what its dense model gives, [1, ...]."""
    for i, task in enumerate(asked):
        torch.testing.assert_close(found[i : i + 1], alone(i, task), rtol=1e-7, atol=1e-9)


@torch.no_grad()
@pytest.mark.parametrize(
    "first, then",
    [
        ([[1, 1, 1, 1], [1, 1, 1, 1]], [[1, 1, 0, 0], [1, 1, 1, 1]]),  # six tokens are three a row
        ([[1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0]], None),  # the first two rows have as many
    ],
    ids=["a later call", "later rows"],
)
@pytest.mark.parametrize("kind", [NoPadding, NoPaddingByIds])
def test_tokens_that_are_no_padding(kind, first, then, maker, dense_twin):
    base, model, tasks = made(kind, maker)
    for mask in (first, then or first):
        mask, asked = torch.tensor(mask), TASKS[::2] if len(mask) == 2 else TASKS
        given = [maker.randn(*mask.shape, 8, scale=1.0), mask] if kind is NoPadding else [mask * (mask.cumsum(1) + 2)]
        alone = lambda i, t, given=given: dense_twin(base, weights(t, tasks))(*[one[i : i + 1] for one in given])  # noqa: E731
        compare(model(*given, tasks=asked), alone, asked)


@torch.no_grad()
@pytest.mark.parametrize("length", [1, 3])
def test_tokens_that_go_to_experts(length, maker, dense_twin):
    """Whichever the first two rows are, and those after them."""
    torch.manual_seed(0)
    base = Experts().double()
    model, tasks = loaded(base, maker)
    twins = {task: dense_twin(base, weights(task, tasks)) for task in ("a", "b")}
    for seed in range(15):
        model._known_calls.found.clear()
        for ids in torch.randint(50, (2, 2, length), generator=torch.Generator().manual_seed(seed)):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # experts that the first call did not reach
                found = model(ids, tasks=["a", "b"])
            compare(found, lambda i, t, ids=ids: twins[t](ids[i : i + 1]), ["a", "b"])


@torch.no_grad()
@pytest.mark.parametrize("rows", [4, 5])
def test_rows_in_another_order_that_begins_alike(rows, maker, dense_twin):
    base, model, tasks = made(EverySecond, maker)
    x, asked = maker.randn(rows, 8, scale=1.0), [*TASKS, "b"][:rows]
    compare(model(x, tasks=asked), lambda i, t: dense_twin(base, weights(t, tasks))(x[i : i + 1]), asked)


@torch.no_grad()
def test_a_layer_that_is_first_reached_later(maker, dense_twin):
    base, model, tasks = made(ByLength, maker)
    for length in (3, 2, 5, 2):
        x = maker.randn(4, length, 8, scale=1.0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = model(x, tasks=TASKS)
        compare(found, lambda i, t, x=x: dense_twin(base, weights(t, tasks))(x[i : i + 1]), TASKS)
    assert model.status()["grouped"] == {"two": "only some inputs reach it"}


@torch.no_grad()
def test_an_object_that_some_inputs_would_be_put_into_twice_is_not(maker):
    class Notes:
        seen = 0

    class Noting(ByLength):
        def forward(self, x, notes):
            notes.seen += 1
            return super().forward(x)

    _, model, _ = made(Noting, maker)
    notes = Notes()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model(maker.randn(4, 3, 8), notes, tasks=TASKS)
    notes.seen = 0
    with pytest.raises(RuntimeError, match="two is reached by some inputs only; give rows of one task at a time"):
        model(maker.randn(4, 2, 8), notes, tasks=TASKS)
    assert notes.seen == 1


@torch.no_grad()
def test_looking_for_the_rows_leaves_nothing_behind(maker, dense_twin):
    base, model, tasks = made(Stateful, maker)
    twins = [dense_twin(base, weights(task, tasks)) for task in ("a", "b")]
    before = torch.get_rng_state()
    for _ in range(3):
        x = maker.randn(2, 8, scale=1.0)
        compare(model(x, tasks=["a", "b"]), lambda i, t, x=x: twins[i](x[i : i + 1]), ["a", "b"])
    assert model.model.calls == 3 and torch.equal(torch.get_rng_state(), before)


def test_rows_are_located_within_a_checkpoint(maker):
    model, _ = loaded(nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8)).double(), maker)
    x, found = maker.randn(4, 8, scale=1.0), []
    for _ in range(2):  # the first call after a load looks, the second one does not
        given = x.clone().requires_grad_()
        checkpoint(lambda one: model(one, tasks=TASKS), given, use_reentrant=False).square().sum().backward()
        found.append(given.grad)
    torch.testing.assert_close(found[0], found[1])


@torch.no_grad()
@pytest.mark.parametrize("rows", [2, 4])
@pytest.mark.parametrize("kind", [AnAxis, Masked, OverTheBatch])
def test_what_all_rows_need_they_all_get(kind, rows, maker, dense_twin):
    """As many as there are rows; and rows that another one's answer depends on."""
    base, model, tasks = made(kind, maker)
    given = {
        AnAxis: [maker.randn(rows, 8, scale=1.0), maker.randn(rows, 8, scale=1.0)],
        Masked: [maker.randn(rows, rows, 8, scale=1.0), torch.full((rows, rows), -torch.inf).triu(1).double()],
        OverTheBatch: [maker.randn(rows, 8, scale=1.0)],
    }[kind]
    asked = TASKS[: rows // 2] + TASKS[-rows // 2 :]
    alone = lambda i, t: dense_twin(base, weights(t, tasks))(*given)[i : i + 1]  # noqa: E731
    compare(model(*given, tasks=asked), alone, asked)


@torch.no_grad()
def test_rows_within_containers(maker, dense_twin):
    base, model, tasks = made(OfAMapping, maker)
    x, there = maker.randn(4, 8, scale=1.0), maker.randn(4, 8, scale=1.0)
    found = model(x, more={"there": (there,), "scale": 2.0}, tasks=TASKS)
    one = lambda i: {"there": (there[i : i + 1],), "scale": 2.0}  # noqa: E731
    compare(found, lambda i, t: dense_twin(base, weights(t, tasks))(x[i : i + 1], one(i)), TASKS)
    base, model, tasks = made(OfAList, maker)
    several = [maker.randn(n, 8, scale=1.0) for n in (2, 3, 1, 5)]
    found = model(x, more=several, tasks=TASKS)
    compare(found, lambda i, t: dense_twin(base, weights(t, tasks))(x[i : i + 1], several[i : i + 1]), TASKS)


@torch.no_grad()
def test_an_answer_in_a_data_class(maker, dense_twin):
    base, model, tasks = made(AsADataClass, maker)
    x = maker.randn(4, 8, scale=1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = model(x, tasks=TASKS)
    assert type(found) is Answer and found.name == "answer"
    compare(found.logits, lambda i, t: dense_twin(base, weights(t, tasks))(x[i : i + 1]).logits, TASKS)


def test_rows_of_a_nested_tensor_are_refused(maker):
    model, _ = loaded(nn.Sequential(nn.Linear(8, 8)).double(), maker)
    given = torch.nested.nested_tensor([maker.randn(3, 8), maker.randn(5, 8)], layout=torch.jagged)
    with pytest.raises(ValueError, match="rows of a nested tensor cannot have tasks of their own"):
        model(given, tasks=["a", "b"])
