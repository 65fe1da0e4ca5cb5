"""The routing follows the call: threads with different tasks on one model do not meet."""

import copy
import dataclasses
import pickle
import threading
import warnings

import pytest
import torch
from torch import nn

import dts
from dts.adapter.entries import Entry
from dts.nn import DTSModel
from dts.nn.deltas import ParameterDelta, Table
from dts_kernels import Bank, SampleBank


class Net(nn.Module):
    """Layers of every kind: packed, once a task, vectors, read past their forward."""

    def __init__(self):
        super().__init__()
        self.embed, self.dense, self.norm = nn.Embedding(20, 8), nn.Linear(8, 8), nn.RMSNorm(8)
        self.conv, self.out = nn.Conv1d(8, 8, 3, padding=1), nn.Linear(8, 6)

    def forward(self, ids):
        x = self.norm(self.dense(self.embed(ids)))
        return nn.functional.linear(self.conv(x.mT).mT, self.out.weight, self.out.bias)


@pytest.fixture
def setting(maker, dense_twin):
    torch.manual_seed(0)
    base = Net().double().eval()
    tasks = {t: maker.entries(base, skip=0) for t in "ab"}
    model = DTSModel(copy.deepcopy(base))
    for t, entries in tasks.items():
        model.load_task(t, entries)
    ids = torch.randint(0, 20, (4, 5), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        wanted = {t: dense_twin(base, [(tasks[t], 1.0)])(ids) for t in "ab"} | {None: base(ids)}
    return model, tasks, ids, wanted


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def together(*functions):
    """Run them in threads of their own; what one raises is raised here."""
    errors, start = [], threading.Barrier(len(functions))

    def run(function):
        try:
            start.wait()
            function()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(function,)) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def test_calls_of_another_thread_are_not_looked_at_when_rows_are_located(setting):
    model, _, ids, wanted = setting
    found = {}

    def call_meanwhile(layer, given):
        if model._state.now().probing and not found:
            found["a"] = None
            other = threading.Thread(target=lambda: found.update(a=model(ids, tasks="a")))
            other.start()
            other.join()

    handle = model.model.dense.register_forward_pre_hook(call_meanwhile)
    with torch.no_grad():
        close(model(ids, tasks=["a", "b", None, "a"])[1], wanted["b"][1])
    handle.remove()
    close(found["a"], wanted["a"])
    assert list(model.status()["grouped"]) == ["out"]


def test_stretches_of_a_task_may_end_in_another_order(setting):
    """As generators do that have one each."""
    model, _, ids, wanted = setting

    def answers(task):
        with model.using_task(task):
            while True:
                yield model(ids)

    with torch.no_grad():
        one, two = answers("a"), answers("b")
        close(next(one), wanted["a"])
        close(next(two), wanted["b"])
        one.close()
        close(next(two), wanted["b"])
        two.close()
        close(model(ids), wanted[None])


def test_each_thread_its_own_tasks(setting):
    model, _, ids, wanted = setting

    def calls(tasks):
        rows = tasks if isinstance(tasks, list) else [tasks] * 4
        with torch.no_grad():
            for _ in range(40):
                found = model(ids, tasks=tasks)
                for i, task in enumerate(rows):
                    close(found[i], wanted[task][i])

    together(lambda: calls("a"), lambda: calls("b"), lambda: calls(["a", "b", None, "a"]), lambda: calls([None] * 4))


def test_a_call_under_way_keeps_the_task_it_began_with(setting):
    model, _, ids, wanted = setting
    model.set_task("a")
    model.model.norm.register_forward_hook(lambda *_: model.set_task("b"))
    close(model(ids), wanted["a"])
    close(model(ids), wanted["b"])
    close(model(ids, tasks="a"), wanted["a"])


def test_loading_waits_for_calls_and_is_refused_within_one(setting):
    model, tasks, ids, wanted = setting

    def calls():
        with torch.no_grad():
            for _ in range(40):
                close(model(ids, tasks="a"), wanted["a"])

    def loads():
        for _ in range(5):
            model.load_task("c", tasks["b"])
            model.load_task("a", tasks["a"])
            model.delete_task("c")

    together(calls, loads, calls)
    handle = model.model.norm.register_forward_hook(lambda *_: model.delete_task("b"))
    with pytest.raises(RuntimeError, match="within a call"):
        model(ids, tasks="a")
    handle.remove()
    close(model(ids, tasks="b"), wanted["b"])


def test_tasks_are_off_in_one_thread_only(setting):
    model, _, ids, wanted = setting
    model.set_task("a")
    with model.disable_tasks():
        close(model(ids), wanted[None])
        together(lambda: close(model(ids), wanted["a"]))


def test_backward_after_a_switch(setting):
    """The gradients are those of the call's task."""
    model, _, ids, _ = setting
    grads = []
    for switch in (False, True):
        model.set_task("a")
        model.zero_grad()
        y = model(ids).square().sum()
        if switch:
            model.set_task("b")
        y.backward()
        grads.append(model.model.embed._parameters["weight"].grad.clone())
    close(*grads)


def test_base_is_a_task_by_name(setting):
    model, _, ids, wanted = setting
    assert pickle.loads(pickle.dumps(dts.BASE)) is dts.BASE is copy.deepcopy(dts.BASE) and repr(dts.BASE) == "dts.BASE"
    model.set_task("a")
    close(model(ids, tasks=dts.BASE), wanted[None])
    close(model(ids, tasks=[dts.BASE, "a", "b", dts.BASE])[0], wanted[None][0])
    close(model(ids, tasks=None), wanted["a"])
    with pytest.warns(UserWarning, match="None in a list of tasks is the base"):
        close(model(ids, tasks=[None, "a", "b", None])[3], wanted[None][3])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(ids, tasks=[None, "a", "b", None])
    model.set_task(dts.BASE)
    close(model(ids), wanted[None])
    with pytest.raises(TypeError, match="names are strings"):
        model(ids, tasks={dts.BASE: 1.0})


@pytest.mark.parametrize("name", [3, None, "", b"a", dts.BASE], ids=repr)
def test_names_that_are_no_strings(setting, name):
    with pytest.raises(TypeError, match="a task's name is a string"):
        setting[0].load_task(name, setting[1]["a"])


def test_batches_without_rows(setting):
    model, _, ids, _ = setting
    assert model(ids[:0], tasks=[]).shape == (0, 5, 6)
    with pytest.raises(ValueError, match="tasks has 0 items"):
        model(ids, tasks=[])


def test_rows_of_another_input_than_the_outputs(maker):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.l = nn.Linear(6, 5)

        def forward(self, x, scale):
            return self.l(x) * scale.mean()

    model = DTSModel(Two().double())
    for t in "ab":
        model.load_task(t, maker.entries(model.model, skip=0))
    with pytest.raises(ValueError, match=r"no output has a row.*\[4, 6\].*\[2\]"):
        model(torch.ones(4, 6).double(), torch.ones(2).double(), tasks=["a", "b"])


@pytest.mark.parametrize("how", ["pickle", "deepcopy", "save"])
def test_models_with_layers_of_every_kind_are_copied(setting, how, tmp_path):
    model, _, ids, wanted = setting
    model(ids, tasks=["a", "b", "a", "b"])
    if how == "save":
        torch.save(model, tmp_path / "model.pt")
        twin = torch.load(tmp_path / "model.pt", weights_only=False)
    else:
        twin = copy.deepcopy(model) if how == "deepcopy" else pickle.loads(pickle.dumps(model))
    model.set_task("b")
    twin.set_task("a")
    close(twin(ids), wanted["a"])
    close(twin(ids, tasks=["a", "b", None, "a"])[1], wanted["b"][1])
    close(model(ids), wanted["b"])


@pytest.mark.parametrize("name", ["c", "a"])
@pytest.mark.parametrize("after", range(0, 12, 2))
def test_a_load_that_fails_changes_nothing(setting, name, after, monkeypatch):
    """Wherever it fails: memory that ends while pieces are put into slots."""
    model, tasks, ids, wanted = setting
    model.set_task("a")
    before = {n: type(m) for n, m in model.model.named_modules()}, model.status()["nbytes"], model.tasks
    add, left = ParameterDelta.add, [after]

    def failing(self, slot, piece):
        left[0] -= 1
        if left[0] < 0:
            raise MemoryError("no memory")
        add(self, slot, piece)

    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr(ParameterDelta, "add", failing)
        model.load_task(name, tasks["b"])
        if after >= 11:
            pytest.fail("too few pieces for this case")
    assert ({n: type(m) for n, m in model.model.named_modules()}, model.status()["nbytes"], model.tasks) == before
    close(model(ids), wanted["a"])
    slots = {s for layer in model._layers.values() for s in layer.dts.slots}
    assert slots == {t.slot for t in model._loaded.values()}
    model.load_task(name, {"norm.weight": tasks["b"]["norm.weight"]})
    assert model(ids, tasks=name).isfinite().all() and not torch.allclose(model(ids, tasks=name), wanted["b"])


def test_a_first_load_that_fails_leaves_a_plain_model(maker, monkeypatch):
    model = DTSModel(Net().double())
    entries = maker.entries(model.model, skip=0)
    entries["out.bias"] = Entry("out.bias", "out.bias", (6,), "delta", tensor="no tensor")
    with pytest.raises(AttributeError):
        model.load_task("a", entries)
    assert not any(hasattr(m, "dts") for m in model.model.modules())
    assert {type(m) for m in model.model.modules()} == {type(m) for m in Net().modules()}


def test_what_became_of_every_entry(setting, maker):
    model, tasks, _, _ = setting
    assert model.status()["entries"]["a"] == {"applied": len(tasks["a"]), "skipped": {}}
    head = {"out.weight": maker.head("out.weight", 6, 8)}
    with pytest.warns(UserWarning, match="changes nothing"):
        model.load_task("c", head, heads=False)
    assert model.status()["entries"]["c"] == {
        "applied": 0,
        "skipped": {"out.weight": "only the fine-tune has it (heads=False)"},
    }


def test_few_kinds_of_calls_are_remembered(setting):
    model, _, ids, _ = setting
    for i in range(100):
        model._known_calls.found[i] = None
    model(ids, tasks=["a", "b", "a", "b"])
    assert len(model._known_calls.found) <= 32


@pytest.mark.parametrize("failing", [(Table, "_append"), (Bank, "add"), (SampleBank, "_refresh")], ids=lambda f: f[1])
@pytest.mark.parametrize("after", [0, 1, 3])
def test_a_store_that_fails_midway_changes_nothing(setting, failing, after, monkeypatch):
    """Within the stacks and banks themselves, for a new name and for one that is in use."""
    model, tasks, ids, wanted = setting
    model.set_task("a")
    owner, method = failing
    real, left = getattr(owner, method), [after]

    def stopped(self, *args, **kwargs):
        left[0] -= 1
        if left[0] == -1:
            raise MemoryError("no memory")
        return real(self, *args, **kwargs)

    for name in ("c", "a"):
        left[0] = after
        with monkeypatch.context() as patch, pytest.raises(MemoryError):
            patch.setattr(owner, method, stopped)
            model.load_task(name, tasks["b"])
        assert model.tasks == ["a", "b"]
        close(model(ids), wanted["a"])
        close(model(ids, tasks="b"), wanted["b"])
    model.load_task("c", tasks["b"])
    close(model(ids, tasks="c"), wanted["b"])


def test_threads_generate_each_with_its_task(maker):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=40,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        pad_token_id=0,
        eos_token_id=None,
    )
    model = DTSModel(transformers.LlamaForCausalLM(config).double().eval())
    for task in "ab":
        model.load_task(task, maker.entries(model.model, skip=0))
    ids = torch.randint(1, 40, (2, 4))
    kinds = ["a", "b", ["a", "b"], None]
    run = lambda tasks: model.generate(ids, tasks=tasks, max_new_tokens=6, do_sample=False)  # noqa: E731
    wanted = [run(tasks) for tasks in kinds]
    assert not torch.equal(wanted[0], wanted[1])

    def work(tasks, expected):
        for _ in range(3):
            assert torch.equal(run(tasks), expected)

    together(*[lambda tasks=tasks, expected=expected: work(tasks, expected) for tasks, expected in zip(kinds, wanted)])


def test_samples_of_other_sizes_are_named_before_anything_is_loaded(setting, maker):
    model, tasks, ids, wanted = setting
    factors, other = None, None
    while factors is None or not factors.samples or not other.samples:
        factors, other = maker.factors(8, 8), maker.factors(7, 8)
    factors = dataclasses.replace(factors, stored=(factors.packed, *other.samples))
    entries = tasks["b"] | {"dense.weight": Entry("dense.weight", "dense.weight", (8, 8), "factors", factors=factors)}
    with pytest.raises(ValueError, match=r"fit the model:\n  dense.weight: sample of \[7, 8\] where \[8, 8\] belongs"):
        model.load_task("a", entries)
    close(model(ids, tasks="a"), wanted["a"])


class Scaled(nn.Module):
    """Rows times a scale, of which only the last ``keep`` columns are given (0: all)."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x, scale=1.0, keep=0, seed=0):
        return scale * self.linear(x)[:, -keep:]


def test_numbers_that_differ_from_call_to_call_are_no_new_kinds_of_calls(maker):
    """A scale, a seed, a count of several: rows were looked for again for each."""
    model = DTSModel(Scaled())
    for task in "ab":
        model.load_task(task, {"w": maker.entry("linear.weight", model.linear.weight, skip=0)})
    x = torch.randn(2, 4)
    for i in range(5):
        for keep in (0, 1, 2 + i % 2):
            y = model(x, scale=0.5 + i, keep=keep, seed=7 + i, tasks=["a", "b"])
            alone = torch.cat([model(x[j : j + 1], scale=0.5 + i, keep=keep, tasks=t) for j, t in enumerate("ab")])
            torch.testing.assert_close(y, alone)
    assert len(model._known_calls.found) == 3  # all columns, one, several


def test_a_call_that_a_deletion_waits_for_ends(setting, monkeypatch):
    """It enters the model more than once: each time a change that waits already would be before it."""
    model, _, ids, wanted = setting
    found, deletion = [], threading.Thread(target=model.delete_task, args=("b",), daemon=True)
    hold = model._places.hold

    def waited_for():
        deletion.start()
        while not model._state._gate._waiting:
            pass
        return hold()

    def call():
        with torch.no_grad():
            found.append(model(ids, tasks="a"))

    monkeypatch.setattr(model._places, "hold", waited_for)
    caller = threading.Thread(target=call, daemon=True)
    caller.start()
    caller.join(20)
    assert not caller.is_alive()
    deletion.join(20)
    close(found[0], wanted["a"])
    assert model.tasks == ["a"]
