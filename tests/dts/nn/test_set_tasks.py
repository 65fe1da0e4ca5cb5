"""Tasks a row that stay: the same tensors whatever is set, for calls, programs and CUDA graphs."""

import copy

import pytest
import torch
from torch import nn

from dts.nn import DTSModel
from dts.nn.routing import state as states


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.dense, self.norm, self.out = (
            nn.Embedding(20, 8),
            nn.Linear(8, 8),
            nn.RMSNorm(8),
            nn.Linear(8, 6),
        )

    def forward(self, ids):
        return self.out(self.norm(self.dense(self.embed(ids))))


@pytest.fixture
def setting(maker, dense_twin):
    torch.manual_seed(0)
    base = Net().double().eval()
    tasks = {t: maker.entries(base, skip=0) for t in "abc"}
    model = DTSModel(copy.deepcopy(base))
    for t in "ab":
        model.load_task(t, tasks[t])
    ids = torch.randint(0, 20, (4, 5), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        wanted = {t: dense_twin(base, [(tasks[t], 1.0)])(ids) for t in "abc"} | {None: base(ids)}
    return model, tasks, ids, wanted


def rows(wanted, names):
    return torch.stack([wanted[name][i] for i, name in enumerate(names)])


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_each_row_has_its_task_until_others_are_set(setting):
    model, _, ids, wanted = setting
    for names in (["a", "b", None, "a"], ["b", "b", "a", None]):
        model.set_tasks(names)
        close(model(ids), rows(wanted, names))
        close(model(ids, tasks="b"), wanted["b"])
        close(model(ids), rows(wanted, names))
        with model.disable_tasks():
            close(model(ids), wanted[None])
        assert [list(mixture) for mixture in model.status()["current"]] == [[n] if n else [] for n in names]
    with pytest.raises(ValueError, match="tasks has 4 items, one a row, but no input has 4 rows"):
        model(ids[:3])
    model.set_task("a")
    close(model(ids[:3]), wanted["a"][:3])


@torch.no_grad()
def test_the_model_within_answers_as_what_is_set_or_says_why_not(setting):
    model, _, ids, wanted = setting
    inner = model.model
    for task in ("a", None, "b"):
        model.set_task(task)
        close(inner(ids), wanted[task])
    close(inner.out(inner.norm(inner.dense(inner.embed(ids)))), wanted["b"])
    with pytest.raises(TypeError, match="tasks= is the DTSModel's"):
        inner(ids, tasks="a")
    model.set_tasks(["a", "b", None, "a"])
    for part, given in (
        (inner, ids),
        (inner.dense, torch.zeros(4, 8).double()),
        (inner.norm, torch.ones(4, 8).double()),
    ):
        with pytest.raises(RuntimeError, match="past its DTSModel.*set_task"):
            part(given)
    close(model(ids), rows(wanted, ["a", "b", None, "a"]))
    merged = copy.deepcopy(model).merge_and_unload("a")
    assert not merged._forward_pre_hooks and not merged._forward_pre_hooks_with_kwargs
    close(merged(ids), wanted["a"])


class Swallows(Net):
    def forward(self, ids, **others):
        return super().forward(ids)


class Takes(Net):
    def forward(self, ids, tasks=None):
        return super().forward(ids) * (1 if tasks is None else 2)


@torch.no_grad()
def test_tasks_that_the_model_within_would_swallow_are_refused(maker):
    for kind in (Swallows, Takes):
        model = DTSModel(kind().double())
        ids = torch.arange(4)[:, None]
        model.load_task("a", maker.entries(model.model, skip=0))
        model.load_task("a", maker.entries(model.model, skip=0))
        plain = model(ids)
        if kind is Takes:
            close(model.model(ids, tasks=["a"] * 4), 2 * plain)
            continue
        for one in (model, copy.deepcopy(model)):
            with pytest.raises(TypeError, match="call the DTSModel"):
                one.model(ids, tasks=["a"] * 4)
            close(one.model(ids, others=1), plain)


@torch.no_grad()
def test_mixtures_a_row(setting, dense_twin):
    model, tasks, ids, _ = setting
    base = model.merge_and_unload(None)
    model = DTSModel(copy.deepcopy(base))
    for t in "ab":
        model.load_task(t, tasks[t])
    mixture = {"a": 0.25, "b": 0.75}
    model.set_tasks([mixture, "a", None, mixture])
    wanted = dense_twin(base, [(tasks["a"], 0.25), (tasks["b"], 0.75)])(ids)
    close(model(ids)[[0, 3]], wanted[[0, 3]])


def test_what_is_set_for_as_many_rows_is_written_into_the_same_tensors(setting):
    model = setting[0]
    model.set_tasks(["a", "b", None])
    three = model._state.chosen.routing
    model.set_tasks(["b", None])
    two = model._state.chosen.routing
    model.set_task("a")
    one = model._state.chosen.routing
    model.set_tasks([None, "b", "b"])
    assert model._state.chosen.routing is three and three.slots.flatten().tolist() == [-1, 1, 1]
    assert two.slots.flatten().tolist() == [1, -1] and one.slots.flatten().tolist() == [0]


@torch.no_grad()
def test_a_task_that_goes_or_is_replaced_does_so_in_all_that_is_set(setting):
    """A slot that is free is the next task's: rows that a graph still routes there must not follow."""
    model, tasks, ids, wanted = setting
    names = ["a", "b", "b", "a"]
    model.set_tasks(names)
    four = model._state.chosen.routing
    model.load_task("b", tasks["c"])  # while it is in use
    close(model(ids), rows(wanted, ["a", "c", "c", "a"]))
    model.set_task("a")
    model.delete_task("b")
    model.load_task("c", tasks["b"])
    assert four.slots.flatten().tolist() == [0, -1, -1, 0]
    model.set_tasks(["c", "c", "a", "a"])
    model.delete_task("c")
    close(model(ids), rows(wanted, [None, None, "a", "a"]))


def test_what_a_graph_cannot_follow_is_refused(setting, monkeypatch):
    model, _, ids, _ = setting
    model.set_tasks(["a", "b", None, "a"])
    with torch.no_grad():
        model(ids)
        monkeypatch.setattr(states, "_capturing", lambda device: True)
        model(ids)
        with pytest.raises(RuntimeError, match="set_tasks.. before the capture"):
            model(ids, tasks="a")
    monkeypatch.undo()
    model.set_tasks(["b", "b", "b", "b"])
    with pytest.raises(RuntimeError, match="captured with 1 tasks in a mixture and cannot follow one of 2"):
        model.set_tasks([{"a": 1.0, "b": 1.0}, None, None, None])
    assert model.status()["current"] == [{"b": 1.0}] * 4
    model.set_tasks([{"a": 1.0, "b": 1.0}, None])  # for as many rows none was captured
    copied = copy.deepcopy(model)  # which no graph follows
    copied.set_tasks([{"a": 1.0, "b": 1.0}, None, None, None])


@pytest.mark.parametrize("tasks", ["a", [], None, {"a": 1.0}], ids=str)
def test_a_list_with_an_item_a_row_is_needed(setting, tasks):
    with pytest.raises(ValueError, match="one item a row"):
        setting[0].set_tasks(tasks)


def test_unknown_names_change_nothing(setting):
    model = setting[0]
    model.set_tasks(["a", "b"])
    with pytest.raises(ValueError, match="no task 'x'; the loaded tasks are"):
        model.set_tasks(["a", "x"])
    assert model.status()["current"] == [{"a": 1.0}, {"b": 1.0}]


@torch.no_grad()
def test_programs_follow_without_compiling_again(setting):
    model, _, ids, wanted = setting
    torch._dynamo.reset()
    model.set_tasks(["a", "b", None, "a"])
    model(ids)
    compiled, graphs = [], []

    def backend(module, inputs):
        graphs.append(module)
        return module.forward

    program = torch.compile(model.model, backend=backend)
    compiled.append(program(ids))
    close(compiled[0], rows(wanted, ["a", "b", None, "a"]))
    count = len(graphs)
    model.set_tasks(["b", None, "b", "a"])
    close(program(ids), rows(wanted, ["b", None, "b", "a"]))
    assert len(graphs) == count
