"""An optimizer does not move the base under its tasks; all else can be trained beside them."""

import copy
import pickle

import pytest
import torch
from torch import nn

import dts
from dts.nn import DTSModel


@pytest.fixture
def model(maker):
    torch.manual_seed(0)
    model = DTSModel(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)))
    model.load_task("a", {name: e for name, e in maker.entries(model.model, skip=0).items() if name.startswith("0.")})
    model.set_task("a")
    return model


def step(model, parameters):
    optimizer = torch.optim.AdamW(parameters, lr=0.1)
    model(torch.ones(2, 8)).sum().backward()
    optimizer.step()


@pytest.mark.parametrize("how", ["itself", "deepcopy", "pickle"])
def test_a_base_under_tasks_is_not_trained(model, how):
    model = {"itself": lambda m: m, "deepcopy": copy.deepcopy, "pickle": lambda m: pickle.loads(pickle.dumps(m))}[how](
        model
    )
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(RuntimeError, match=r"would move weights of the base .*: 0\.weight.*merge_and_unload\(task\)"):
        step(model, model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_what_no_task_changes_is_trained(model):
    before = model.model[2].weight.detach().clone()
    model.model[0].requires_grad_(False)
    step(model, model.parameters())
    assert not torch.equal(model.model[2].weight, before)
    model.model[0].requires_grad_(True)
    model.delete_task("a")
    step(model, model.parameters())


def test_a_merged_model_is_trained(model):
    plain = model.merge_and_unload("a")
    before = plain[0].weight.detach().clone()
    step(plain, plain.parameters())
    assert not torch.equal(plain[0].weight, before)


def test_gradients_pass_tasks_that_were_loaded_in_inference_mode(maker, tmp_path):
    torch.manual_seed(0)
    model = DTSModel(nn.Sequential(nn.Embedding(9, 8), nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 4)))
    base = copy.deepcopy(model.model)
    torch.save(base.state_dict(), tmp_path / "base.bin")
    with torch.no_grad():
        for parameter in base.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    torch.save(base.state_dict(), tmp_path / "tuned.bin")
    dts.compress(tmp_path / "base.bin", tmp_path / "tuned.bin", out=tmp_path / "small", rank_fraction=0.5)
    entries = maker.entries(model.model, skip=0)
    with torch.inference_mode():
        model.load_task("a", entries)
        model.load_task("b", tmp_path / "small")
        model.load_task("c", dts.Adapter.load(tmp_path / "small"))
        model(torch.tensor([[1, 2], [3, 4], [5, 6]]), tasks=["a", "b", "c"])
    seen = []
    handle = model.model[0].register_forward_hook(
        lambda module, args, y: seen.append(y.detach().requires_grad_()) or seen[-1]
    )
    model(torch.tensor([[1, 2], [3, 4], [5, 6]]), tasks=["a", "b", "c"]).sum().backward()
    handle.remove()
    assert seen[-1].grad.abs().sum() > 0
