"""What other libraries' code sees of a `DTSModel`: the base's class and arguments."""

import copy
import inspect
import pickle

import pytest
import torch
from torch import nn

transformers = pytest.importorskip("transformers")

from dts.adapter.entries import Entry  # noqa: E402
from dts.nn import DTSModel  # noqa: E402
from tests.dts.nn.classifiers import TEXT  # noqa: E402


@pytest.fixture
def model():
    return DTSModel(transformers.BertForSequenceClassification(transformers.BertConfig(**TEXT)).eval())


def test_the_class_is_the_bases_and_the_type_is_not(model):
    assert model.__class__ is transformers.BertForSequenceClassification and type(model) is DTSModel
    assert isinstance(model, transformers.PreTrainedModel) and isinstance(model, DTSModel)
    assert repr(model).startswith("DTSModel(\n  (model): BertForSequenceClassification(")
    for bare in (DTSModel(nn.Linear(2, 3)), DTSModel(nn.Sequential(nn.Linear(2, 3)))):
        assert bare.__class__ is DTSModel


def test_a_top_module_that_is_a_layer_is_shown_as_what_it_was(maker):
    vit = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=8)
    clip = transformers.CLIPConfig(
        text_config=TEXT | dict(max_position_embeddings=8), vision_config=vit | dict(patch_size=4), projection_dim=16
    )
    model = DTSModel(transformers.CLIPModel(clip).eval())
    model.load_task("a", {"logit_scale": maker.entries(model.model, skip=0)["logit_scale"]})
    assert type(model.model) is not transformers.CLIPModel and model.__class__ is transformers.CLIPModel


def test_forward_has_the_bases_arguments(model):
    shown = inspect.signature(model.forward).parameters
    theirs = inspect.signature(model.model.forward).parameters
    assert [name for name in shown if name != "tasks"] == list(theirs) and "tasks" in shown
    assert [one.name for one in theirs.values() if one.kind is one.VAR_KEYWORD] == [list(shown)[-1]]
    plain = DTSModel(nn.Linear(2, 3))
    assert list(inspect.signature(plain.forward).parameters) == ["input", "tasks"]
    assert inspect.ismethod(model.forward) and model.forward.__func__.__doc__ == type(model.model).forward.__doc__


@pytest.mark.parametrize("how", ["pickle", "deepcopy", "save"])
def test_copies(model, how, tmp_path):
    ids = torch.randint(3, 50, (2, 4))
    if how == "save":
        torch.save(model, tmp_path / "m.pt")
        twin = torch.load(tmp_path / "m.pt", weights_only=False)
    else:
        twin = copy.deepcopy(model) if how == "deepcopy" else pickle.loads(pickle.dumps(model))
    assert type(twin) is DTSModel and twin.__class__ is model.__class__
    torch.testing.assert_close(twin(ids).logits, model(ids).logits)
    shared = copy.copy(model)
    assert type(shared) is DTSModel and shared.model is model.model


def test_it_is_printed_also_where_the_base_lacks_a_tasks_head():
    head = Entry("head.weight", None, (2, 4), "value", tensor=torch.ones(2, 4), task_only=True)
    lacking = DTSModel(nn.Sequential())
    lacking.model.add_module("head", nn.Linear(4, 3, bias=False))
    lacking.load_task("a", {"head.weight": head})
    lacking._layers["head"].dts.in_base = False
    lacking.set_task(None)
    assert "DTSLinear(in_features=4, out_features=3, bias=False)" in repr(lacking)
