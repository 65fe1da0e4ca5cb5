"""What loading a task costs, counted rather than timed, and what stays in memory of it."""

import gc
import pickle
import shutil
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from classifiers import TEXT, close, family

import dts
from dts.adapter import Adapter, Entry
from dts.codec import Factors
from dts.nn import DTSModel
from dts.nn.loading import ModuleChange

ROOTS = tuple(str(Path(dts.__file__).parents[1] / part) for part in ("dts", "dts_kernels"))
IDS = torch.arange(18).view(2, 9) % 50
CALLS = 162  # of our own functions and of PyTorch's, a tensor more of an adapter that is loaded: 159 now, 216 before


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Layers -> a folder with a base and an adapter of it."""

    def of(layers):
        one = family(tmp_path_factory.mktemp("bert"), sizes=TEXT | {"num_hidden_layers": layers}, classes=ONE)
        return one.folder, one.adapters["mood"].save(tmp_path_factory.mktemp("adapters") / "mood")

    return {layers: of(layers) for layers in (2, 4)}


ONE = {"mood": (["bad", "good"], None)}


def calls(run) -> int:
    """Python functions of ours, and functions in C that are PyTorch's."""
    found = Counter()

    def note(frame, event, argument):
        if event == "call":
            found["ours"] += frame.f_code.co_filename.startswith(ROOTS)
        elif event == "c_call":
            module = getattr(argument, "__module__", None) or type(getattr(argument, "__self__", None)).__module__
            found["torch"] += str(module).startswith("torch")

    sys.setprofile(note)
    try:
        run()
    finally:
        sys.setprofile(None)
    return found["ours"] + found["torch"]


def test_a_tensor_more_costs_few_calls(made):
    cost, rows = [], []
    for folder, adapter in made.values():
        model = DTSModel.from_pretrained(folder, {"first": adapter})
        cost.append(calls(lambda: model.load_task("second", Adapter.load(adapter))))  # noqa: B023
        rows.append(len(Adapter.load(adapter).entries))
    assert (cost[1] - cost[0]) / (rows[1] - rows[0]) <= CALLS


@torch.no_grad()
def test_a_task_of_other_tensors_than_the_last_one_s_goes_where_they_belong(made):
    folder, adapter = made[2]
    entries = Adapter.load(adapter).entries
    tasks = {"all": entries, "some": dict(list(entries.items())[::2]), "others": dict(list(entries.items())[1::2])}
    model, answers = DTSModel.from_pretrained(folder), {}
    for name, own in [*tasks.items(), *reversed(tasks.items())]:
        model.load_task(name, own)
        answers.setdefault(name, []).append(model(input_ids=IDS, tasks=name).logits)
        with pytest.raises(ValueError, match="no such parameter"):
            model.load_task("wrong", {"no.weight": replace(own[next(iter(own))], name="no.weight", base_name=None)})
    assert all(torch.equal(*both) for both in answers.values())
    for name, own in tasks.items():
        alone = DTSModel.from_pretrained(folder)
        alone.load_task(name, own)
        close(alone(input_ids=IDS, tasks=name).logits, answers[name][0])


@pytest.fixture
def from_here():
    """What there is before a test, the millions of objects of a process of many tests, is not looked through."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def alive(*kinds):
    gc.collect()
    return Counter(kind for one in gc.get_objects() for kind in kinds if type(one) is kind)


def test_of_a_task_that_can_be_read_again_only_what_calls_need_stays(made, from_here):
    folder, adapter = made[2]
    kinds = Entry, Factors, ModuleChange
    assert not alive(*kinds)
    model = DTSModel.from_pretrained(folder, {"first": adapter})
    assert alive(Entry)
    entries = model._adapters()["first"].entries.values()
    matrices = sum(e.factorised for e in entries)
    del entries
    expected = model(input_ids=IDS, tasks="first").logits
    model.forget_adapter("first")
    assert not alive(*kinds)
    counts = []
    for name in ("second", "third"):
        model.load_task(name, adapter)
        model.forget_adapter(name)
        counts.append(alive(torch.Tensor)[torch.Tensor])
    assert counts[1] == counts[0] and matrices  # C knows where factors lie; vectors are in their stacks alone
    close(model(input_ids=IDS, tasks="second").logits, expected)


@torch.no_grad()
@pytest.mark.parametrize("loaded", [1, 12])
def test_the_memory_of_a_task_that_is_deleted_goes_without_a_call(made, loaded):
    folder, adapter = made[2]
    model, found = DTSModel.from_pretrained(folder), Adapter.load(adapter)
    memory = {one.memory for e in found.entries.values() if e.factorised for one in e.factors.stored}
    weak = [storage._weak_ref() for both in memory for storage in both]
    model.load_task("first", found)
    for i in range(loaded):
        model.load_task(f"other {i}", adapter)
    model(input_ids=IDS, tasks=["first", "other 0"])
    del found, memory
    model.forget_adapter("first")
    gc.collect()
    assert weak and not any(map(torch.UntypedStorage._expired, weak))
    model.delete_task("first")
    gc.collect()
    assert all(map(torch.UntypedStorage._expired, weak))
    for one in weak:
        torch.UntypedStorage._free_weak_ref(one)


def test_a_forgotten_adapter_is_read_again(made, tmp_path):
    folder, adapter = made[2]
    own = shutil.copytree(adapter, tmp_path / "own")
    model = DTSModel.from_pretrained(folder, {"mood": own})
    labels = model._adapters()["mood"].model_config["id2label"]
    model.forget_adapter("mood")
    assert model._loaded["mood"].kept is None
    assert model.config.id2label != labels
    model.set_task("mood")
    assert model.config.id2label == {int(i): label for i, label in labels.items()}
    model.save_pretrained(tmp_path / "saved", what="adapters")
    again, before = Adapter.load(tmp_path / "saved" / "mood"), Adapter.load(adapter)
    assert again.config["content"] == before.config["content"]
    with pytest.raises(ValueError, match="no task 'other'"):
        model.forget_adapter("other")


def test_an_adapter_that_was_altered_meanwhile_is_not_taken_for_the_one_that_was_loaded(made, tmp_path):
    folder, adapter = made[2]
    own = shutil.copytree(adapter, tmp_path / "own")
    model = DTSModel.from_pretrained(folder, {"mood": own})
    model.forget_adapter("mood")
    other = Adapter.load(adapter)
    other.description = other.config["task"]["description"] = "another one"
    other.save(own, overwrite=True)
    for _ in range(2):
        with pytest.raises(ValueError, match="^own is not there any more as it was loaded"):  # without a path
            model._adapters()
        shutil.rmtree(own, ignore_errors=True)
    assert model(input_ids=IDS, tasks="mood").logits.isfinite().all()  # what calls need is here


def test_a_task_from_entries_has_nothing_to_be_read_again(made):
    folder, adapter = made[2]
    model = DTSModel.from_pretrained(folder)
    model.load_task("mood", Adapter.load(adapter).entries)
    model.forget_adapter("mood")
    assert model._loaded["mood"].adapter is None


def test_an_adapter_whose_factors_share_memory_is_pickled_once(made):
    adapter = Adapter.load(made[2][1])
    factors = [f.packed for entry in adapter.entries.values() for f in entry.matrices]
    assert len({f.u.untyped_storage().data_ptr() for f in factors}) == 1
    assert all(t.data_ptr() % 16 == 0 for f in factors for t in (f.u, f.v, f.sigma))
    alone = [f.with_tensors(torch.Tensor.clone) for entry in adapter.entries.values() for f in entry.matrices]
    written, again = len(pickle.dumps(factors)), pickle.loads(pickle.dumps(factors))
    assert written <= len(pickle.dumps([f.packed for f in alone]))
    assert all(torch.equal(a.u, b.u) and torch.equal(a.sigma, b.sigma) for a, b in zip(factors, again, strict=True))
