"""What callers give a `DTSModel` that it cannot take: each is told what to give instead."""

import copy
import dataclasses
from collections import deque

import numpy as np
import pytest
import torch
from torch import nn

import dts

X = torch.ones(2, 8)


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Linear(8, 8)

    def forward(self, x):
        return self.body(x)


@pytest.fixture
def model(maker):
    made = dts.DTSModel(Small())
    for name in ("mood", "topic"):
        made.load_task(name, maker.entries(made.model, skip=0))
    return made


@torch.no_grad()
@pytest.mark.parametrize("kind", [tuple, np.array, deque])
def test_tasks_in_any_list(model, kind):
    expected = model(X, tasks=["mood", "topic"])
    assert not torch.equal(*expected) and torch.equal(model(X, tasks=kind(["mood", "topic"])), expected)


@pytest.mark.parametrize("tasks", [{"mood", "topic"}, iter(["mood", "topic"]), b"mood", {"mood": 1}.keys()])
def test_tasks_without_an_order_or_of_bytes(model, tasks):
    with pytest.raises(TypeError, match="a task is a name.*one a row is a list of these"):
        model(X, tasks=tasks)


def test_names_near_those_that_are_not_there_and_not_thousands(model, maker):
    with pytest.raises(ValueError, match=r"no task 'Mood', 'topics'; .* did you mean 'mood' or 'topic'\?"):
        model(X, tasks=["Mood", "topics"])
    for i in range(60):
        model._loaded[f"other{i}"] = model._loaded["mood"]
    with pytest.raises(ValueError, match="'other47' and 12 more$"):
        model.set_task("zzz")


def test_weights_that_are_no_numbers(model):
    with pytest.raises(TypeError, match="weights of a mixture are numbers: .*'mood': 'a'"):
        model(X, tasks={"mood": "a"})
    assert torch.isfinite(model(X, tasks={"mood": np.float32(0.5)})).all()


def test_a_batch_that_was_not_taken_apart(model):
    with pytest.raises(ValueError, match=r"no input has 2 rows: \{\}; give the tensors of a dict by their names"):
        model({"x": X}, tasks=["mood", "topic"])


def test_rows_of_other_logits(model):
    with pytest.raises(ValueError, match="tasks has 3 items, one a row, but the logits have 2 rows"):
        model.task_logits(model(X), tasks=["mood"] * 3)


def test_what_is_no_model(model):
    for given in ("models/base", None):
        with pytest.raises(TypeError, match=r"a model in memory, not of a \w+: DTSModel.from_pretrained"):
            dts.DTSModel(given)
    with pytest.raises(TypeError, match="a DTSModel already: load_task"):
        dts.DTSModel(model)
    with pytest.raises(TypeError, match="takes a folder or hub id, not a Small: DTSModel"):
        dts.DTSModel.from_pretrained(Small())


@torch.no_grad()
def test_two_models_over_one_base(model, maker):
    """Both routed the layers of both: each answered for neither's task."""
    other = dts.DTSModel(model.model)
    expected = model(X, tasks=["mood", "topic"])
    with pytest.raises(ValueError, match=r"body are layers of another DTSModel .* copy.deepcopy\(that DTSModel\)"):
        other.load_task("mood", maker.entries(Small(), skip=0))
    with pytest.raises(ValueError, match="copied before it had tasks"):  # a copy's layers ask that of the copied ones
        dts.DTSModel(copy.deepcopy(model.model)).load_task("mood", maker.entries(Small(), skip=0))
    assert torch.equal(model(X, tasks=["mood", "topic"]), expected)
    again = dts.DTSModel(copy.deepcopy(model).merge_and_unload("mood"))
    again.load_task("topic", maker.entries(Small(), skip=0))
    twin = copy.deepcopy(model)
    twin.load_task("third", maker.entries(Small(), skip=0))
    assert torch.equal(twin(X, tasks=["mood", "topic"]), expected)


class Twice(nn.Module):
    """One layer in two places."""

    def __init__(self):
        super().__init__()
        self.first = self.second = nn.Linear(8, 8)

    def forward(self, x):
        return self.second(self.first(x))


@torch.no_grad()
def test_a_module_in_two_places_that_changes_in_two_ways(maker):
    """As a base of two layers has them that someone made one: both changes were added to it."""
    own = maker.entries(nn.ModuleDict({"first": nn.Linear(8, 8), "second": nn.Linear(8, 8)}), skip=0)
    one = {name: entry for name, entry in own.items() if name.startswith("first")}
    same = one | {
        name.replace("first", "second"): dataclasses.replace(e, name=e.name.replace("first", "second"))
        for name, e in one.items()
    }
    base, models = Twice(), []
    for entries in (one, same):
        models.append(dts.DTSModel(copy.deepcopy(base)))
        models[-1].load_task("a", entries)
    assert torch.equal(models[0](X, tasks="a"), models[1](X, tasks="a"))
    with pytest.raises(ValueError, match="second.weight: it and first.weight are one parameter .* in two ways"):
        dts.DTSModel(base).load_task("a", own)


def test_a_base_whose_parameters_are_wrapped(maker):
    entries = maker.entries(Small(), skip=0)
    normed = Small()
    nn.utils.parametrizations.weight_norm(normed.body)
    with pytest.raises(ValueError, match="no such parameter\n  The model is parametrised"):
        dts.DTSModel(normed).load_task("a", entries)
    wrapped = Small()
    wrapped.body = nn.ModuleDict({"base_layer": wrapped.body, "lora_A": nn.Linear(8, 2)})
    with pytest.raises(ValueError, match="The model has adapters of PEFT in it"):
        dts.DTSModel(wrapped).load_task("a", entries)
    prompted = Small()
    prompted.body = nn.ModuleDict({"model": prompted.body})
    prompted.body.register_parameter("adaption_prompt", nn.Parameter(torch.randn(2)))
    with pytest.raises(ValueError, match="The model has adaption prompts of PEFT in it"):
        dts.DTSModel(prompted).load_task("a", entries)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_a_base_that_torch_has_packed(maker):
    entries = maker.entries(Small(), skip=0)
    packed = torch.ao.quantization.quantize_dynamic(Small(), {nn.Linear}, dtype=torch.qint8)
    with pytest.raises(ValueError, match="no such parameter\n  .*body.* are packed by torch.ao.quantization") as error:
        dts.DTSModel(packed).load_task("a", entries)
    assert "load tasks over the model as it was before" in str(error.value)


@pytest.mark.parametrize("adapters", [["a"], "a"])
def test_adapters_without_names(adapters):
    with pytest.raises(TypeError, match=r"by their tasks, \{name: adapter or its folder\}, not as a (list|str)"):
        dts.DTSModel.from_pretrained("models/base", adapters=adapters)


@pytest.mark.parametrize(
    "given, words", [(3, "not as a int"), (["folder"], "not as a list"), (None, "not as a NoneType")]
)
def test_what_is_no_adapter(model, given, words):
    with pytest.raises(TypeError, match=words):
        model.load_task("new", given)


def test_weights_are_no_entries(model):
    with pytest.raises(TypeError, match=r"'body.weight' is a Tensor, and no entry of an adapter: dts.compress"):
        model.load_task("new", {"body.weight": torch.zeros(8, 8)})
    assert model.tasks == ["mood", "topic"]


@pytest.mark.parametrize("floor", [float("nan"), -1, 2])
def test_a_floor_that_is_no_probability(model, floor):
    with pytest.raises(ValueError, match="floor is a probability"):
        model.choose_tasks({"x": X}, floor=floor)


@pytest.mark.filterwarnings("ignore")
def test_a_torchscript_child_is_refused_by_name():
    """Loading a task onto any other layer ended in an error of pybind's."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Sequential(torch.jit.script(nn.Linear(4, 4))))
    with pytest.raises(TypeError, match=r"^1\.0: TorchScript programs, which run no tasks"):
        dts.DTSModel(model)
