"""Calls that are captured once and replayed, with a stand-in for CUDA's graphs: what they follow, and refuse."""

import copy
import gc
import weakref
from functools import partial

import pytest
import torch
from torch import nn

import dts_kernels.bank
import dts_kernels.parts.sample
from dts.adapter.entries import Entry
from dts.codec.factors import Factors
from dts.nn import DTSModel
from dts.nn.deltas import Table, stack
from dts.nn.routing import state as states
from dts_kernels import PackedFactors, Routing, SampleBank, Samples, pack
from dts_kernels.samples import groups_of
from tests.dts.nn.test_set_tasks import Net, rows


def close(found, expected):
    """Kernel words keep levels as float32 coefficients."""
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def task(seed):
    """Components of all matrices, a sample of one, and vectors: what most adapters have."""
    generator = torch.Generator().manual_seed(seed)
    codes = lambda m, k: pack(torch.randint(0, 4, (m, k), generator=generator, dtype=torch.uint8))  # noqa: E731
    entries = {}
    for name, tensor in Net().named_parameters():
        common = {"name": name, "base_name": name, "shape": tuple(tensor.shape)}
        if tensor.dim() == 1:
            entries[name] = Entry(kind="delta", tensor=torch.randn(tensor.shape, generator=generator), **common)
            continue
        m, n = tensor.shape
        stored = [PackedFactors(codes(m, 3), codes(n, 3), torch.rand(3, generator=generator) * 0.1)]
        if name.startswith("dense"):
            stored.append(Samples(codes(m, groups_of(n, 3)), 0.1, 3, seed, (m, n)))
        entries[name] = Entry(kind="factors", factors=Factors(tuple(stored), (m, n), None, None, 1.0, 0.1), **common)
    return entries


@pytest.fixture
def setting(graph, dense_twin):
    torch.manual_seed(0)
    base, tasks = Net().double().eval(), {name: task(seed) for seed, name in enumerate("abc")}
    model = DTSModel(copy.deepcopy(base))
    for name in "ab":
        model.load_task(name, tasks[name])
    ids = torch.randint(0, 20, (4, 5))
    with torch.no_grad():
        wanted = {t: dense_twin(base, [(tasks[t], 1.0)])(ids) for t in "abc"} | {None: base(ids)}
    return model, tasks, ids, wanted


class Graph:
    """Repeats a call as a graph does: with the tensors that are written in place, into the outputs that there are."""

    def __init__(self, monkeypatch):
        self.patch = monkeypatch

    def record(self, run):
        run()
        out = self._captured(run)
        return lambda: out.copy_(self._captured(run)), out

    def _captured(self, run):
        with self.patch.context() as patch:
            patch.setattr(states, "_capturing", lambda device: True)
            return run()


@pytest.fixture
def graph(monkeypatch):
    """Kernel words and tables in place, as on a GPU; products are PyTorch's."""
    monkeypatch.setattr(dts_kernels.bank, "bank_layout", lambda device: "planar")
    monkeypatch.setattr(dts_kernels.parts.sample, "SampleBank", partial(SampleBank, arena=True))
    monkeypatch.setattr(stack, "_holds_addresses", lambda device: True)
    return Graph(monkeypatch)


@torch.no_grad()
def test_a_captured_call_follows_what_is_set_and_loaded(graph, setting):
    model, tasks, ids, wanted = setting
    model.set_tasks(["a", "b", None, "a"])
    step = model.capture(graph.record, ids=ids)
    close(step(ids=ids), rows(wanted, ["a", "b", None, "a"]))
    model.set_tasks(["b", None, "b", "a"])
    other = ids.flip(1)
    close(step(ids=other), torch.stack([wanted[n][i] for i, n in enumerate(["b", None, "b", "a"])]).flip(1))
    model.load_task("c", tasks["c"])  # of no more ranks, in one of the first slots
    model.set_tasks(["c", "a", "c", None])
    close(step(ids=ids), rows(wanted, ["c", "a", "c", None]))
    model.delete_task("b")
    model.load_task("a", tasks["b"])  # another one under that name
    close(step(ids=ids), torch.stack([wanted[n][i] for i, n in enumerate(["c", "b", "c", None])]))
    assert step(ids=ids) is step.outputs


def test_what_was_not_captured_is_refused_and_nothing_is_run(graph, setting):
    model, _, ids, _ = setting
    model.set_tasks(["a", "b", None, "a"])
    cache = object()
    step = model.capture(graph.record, ids=ids)
    step._given["cache"] = cache
    before = step.outputs.clone()
    for wrong, words in (
        ({"ids": torch.cat([ids, ids])}, r"ids is \[8, 5\] torch.int64 and was \[4, 5\]"),
        ({"ids": ids[:3]}, r"ids is \[3, 5\]"),
        ({"ids": ids.int()}, "ids is .* torch.int32 and was"),
        ({}, "ids is missing"),
        ({"ids": ids, "cache": object()}, "cache is another one"),
        ({"ids": ids, "mask": ids}, "mask was not there"),
    ):
        with pytest.raises(ValueError, match=words):
            step(**({"cache": cache} | wrong))
    with pytest.raises(ValueError, match="ids is .*; cache is another"):
        step(ids=ids[:3], cache=1)
    model.set_tasks(["a"] * 5)
    with pytest.raises(ValueError, match="tasks for 4 rows, and there are some for 5 now: set_tasks.. with 4"):
        step(ids=ids, cache=cache)
    assert torch.equal(step.outputs, before)


@pytest.mark.parametrize("wrong", [{}, {"ids": None}], ids=str)
def test_a_call_without_tensors_is_not_captured(wrong, graph, setting):
    with pytest.raises(ValueError, match="inputs by name, tensors among them"):
        setting[0].capture(graph.record, **wrong)


def test_a_model_on_a_cpu_has_no_cuda_graphs(setting):
    with pytest.raises(ValueError, match="this one is on cpu"):
        setting[0].capture(ids=setting[2])


@torch.no_grad()
def test_tasks_beyond_the_room_are_named_not_left_out_in_silence(graph, setting, maker):
    model, tasks, ids, wanted = setting
    model.set_tasks(["a", "b", None, "a"])
    step = model.capture(graph.record, ids=ids)
    model(ids)
    for i in range(7):  # slots 2 to 8, and there is room for 8
        model.load_task(f"more{i}", tasks["c"])
    with pytest.warns(UserWarning, match="'more6': loaded after a CUDA graph was captured"):
        model.set_tasks(["more6", "a", "b", None])
    with pytest.raises(RuntimeError, match="'more6': loaded after the capture, and beyond the room"):
        step(ids=ids)
    model.set_tasks(["more5", "a", "b", None])
    close(step(ids=ids), rows(wanted, ["c", "a", "b", None]))
    model.set_tasks(["more6", "a", "b", None])
    again = model.capture(graph.record, ids=ids)
    close(again(ids=ids), rows(wanted, ["c", "a", "b", None]))
    with pytest.raises(RuntimeError, match="more6"):
        step(ids=ids)
    model.set_tasks(["a", "a", "b", None])
    close(step(ids=ids), rows(wanted, ["a", "a", "b", None]))


@torch.no_grad()
def test_room_that_was_asked_for_is_followed(graph, setting):
    model, tasks, ids, wanted = setting
    model.reserve(tasks=20)
    model.set_tasks(["a", "b", None, "a"])
    step = model.capture(graph.record, ids=ids)
    for i in range(18):
        model.load_task(f"more{i}", tasks["c"])
    model.set_tasks(["more17", "a", "more9", None])
    close(step(ids=ids), rows(wanted, ["c", "a", "c", None]))
    model.load_task("last", tasks["c"])
    with pytest.warns(UserWarning, match="'last'"):
        model.set_tasks(["last", "a", "b", None])
    with pytest.raises(RuntimeError, match="'last'"):
        step(ids=ids)


@pytest.mark.parametrize("tasks", [0, -1, 1.5, True, None, "8"])
def test_room_is_for_a_number_of_tasks(setting, tasks):
    with pytest.raises(ValueError, match="a number of tasks, 1 or more"):
        setting[0].reserve(tasks)


@torch.no_grad()
def test_a_task_that_changes_what_none_did_is_beyond(graph, maker):
    torch.manual_seed(0)
    model = DTSModel(Net().double().eval())
    entries = maker.entries(model.model, skip=0)
    model.load_task("a", {name: entry for name, entry in entries.items() if name.startswith("dense")})
    ids = torch.randint(0, 20, (4, 5))
    step = model.capture(graph.record, ids=ids)
    model.load_task("b", entries)
    with pytest.warns(UserWarning, match="'b'"):
        model.set_task("b")
    with pytest.raises(RuntimeError, match="'b'"):
        step(ids=ids)


class Mixing(nn.Module):
    def __init__(self):
        super().__init__()
        self.dense = nn.Linear(8, 8)

    def forward(self, x):
        return self.dense(x - x.mean(0)) @ x.T


@torch.no_grad()
def test_a_model_that_runs_once_a_task_is_not_captured_with_several(graph, maker):
    model = DTSModel(Mixing().double().eval())
    for name in "ab":
        model.load_task(name, maker.entries(model.model, skip=0))
    x = torch.randn(4, 8, dtype=torch.float64)
    model.set_tasks(["a", "b", None, "a"])
    with pytest.raises(RuntimeError, match="cannot follow the tasks of a model that runs once a task"):
        model.capture(graph.record, x=x)
    model.set_task("a")
    model.capture(graph.record, x=x)


def test_what_a_graph_reads_stays_as_long_as_it_does(graph, setting):
    model, _, ids, _ = setting
    model.set_tasks(["a", "b", None, "a"])
    step = model.capture(graph.record, ids=ids)
    copied = copy.deepcopy(model)
    assert not list(copied._state.graphs) and list(model._state.graphs) == [step]
    gone = weakref.ref(step)
    del step
    gc.collect()
    assert gone() is None and not list(model._state.graphs)


# ---- tables -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_tables_that_a_graph_holds_stay_and_are_written(graph, dtype):
    made, vectors = Table(stays=True), torch.randn(20, 6).to(dtype)
    made.add(1, vectors[1])
    stack, wide, length = made.stack, made.wide, made.length
    for slot in (0, 7, 3):
        made.add(slot, vectors[slot])
    made.remove(1)
    assert made.stack is stack and made.wide is wide and made.length is length and stack.shape == (8, 6)
    wanted = torch.zeros(8, 6)
    for slot in (0, 3, 7):
        wanted[slot] = vectors[slot]
    assert torch.equal(stack.float(), wanted) and torch.equal(wide, wanted)
    assert length.tolist() == [6, 0, 0, 6, 0, 0, 0, 6]
    made.add(8, vectors[8])  # beyond: another one, and both are kept up to date
    assert made.stack is not stack and made.stack.shape == (16, 6)
    made.remove(0)
    made.add(2, vectors[2])
    for one in (stack, made.stack, wide, made.wide):
        assert not one[0].any() and torch.equal(one[2].float(), vectors[2].float())
    assert set(made.slots) == {2, 3, 7, 8} and torch.equal(made.tensor(8), vectors[8])
    for slot in (2, 3, 7, 8):
        made.remove(slot)
    assert not made.stack.any() and not stack.any() and made.filled
    routing = Routing.of([8, None, 11, {2: 0.5}])
    assert not made.rows(routing, torch.float32).any()
    assert copy.deepcopy(made)._older == []


def test_large_rows_and_what_may_go_have_no_room(graph):
    large, goes = Table(stays=True), Table()
    large.add(0, torch.zeros((1 << 16) + 1))
    goes.add(0, torch.zeros(4))
    assert large.stack.shape[0] == goes.stack.shape[0] == 1


def test_a_table_without_a_graph_takes_no_more_than_its_tasks():
    made = Table(stays=True)
    for slot in range(3):
        made.add(slot, torch.zeros(4))
    assert made.stack.shape == (3, 4)
