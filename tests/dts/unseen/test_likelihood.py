"""Tasks told by what their adapters know of their inputs: the discriminant, and routing in front of a real model."""

import copy
import warnings
from dataclasses import replace

import pytest
import torch

import dts
from dts.adapter.route import InputStatistics
from dts.unseen import EnergyRouter, LikelihoodRouter, input_statistics, task_router
from dts.unseen.likelihood import SHRINKAGE, discriminant
from dts.unseen.statistics import first_layer, summary

transformers = pytest.importorskip("transformers")

LAYER = "encoder.layer.0.attention.self.query.weight"
SIZES = dict(vocab_size=60, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)
HALVES = {"low": torch.arange(2, 30), "high": torch.arange(30, 60)}


def adapters_with_noise(base, where):
    """An adapter a task, of noise in the matrices whose names hold ``where``."""
    adapters = {}
    for task in HALVES:
        tuned = copy.deepcopy(base)
        with torch.no_grad():
            for name, parameter in tuned.named_parameters():
                if where in name and parameter.ndim == 2:
                    parameter += 1e-3 * torch.randn_like(parameter)
        adapters[task] = dts.compress(base, tuned, name=task, rank_fraction=0.3)
    return adapters


@pytest.fixture(scope="module")
def made():
    """(base, adapters whose weights tell nothing of their task: all that moved is noise in the last block)."""
    torch.manual_seed(0)
    base = transformers.BertModel(transformers.BertConfig(**SIZES)).eval()
    return base, adapters_with_noise(base, "layer.1")


def inputs_of(task, rows, padding=0):
    ids = HALVES[task][torch.randint(len(HALVES[task]), (rows, 10))]
    mask = torch.ones_like(ids)
    if padding:
        ids, mask = ids.clone(), mask.clone()
        ids[:, -padding:], mask[:, -padding:] = 0, 0
    return {"input_ids": ids, "attention_mask": mask}


@pytest.fixture
def told(made):
    base, adapters = made
    torch.manual_seed(1)
    adapters = {task: copy.deepcopy(adapter) for task, adapter in adapters.items()}
    for task, adapter in adapters.items():
        adapter.tell(input_statistics(base, [inputs_of(task, 16), inputs_of(task, 16, 3)]))
    return base, adapters


def test_the_discriminant_is_that_of_the_covariance_inverted_whole():
    torch.manual_seed(0)
    tasks = [InputStatistics.of("x", torch.randn(20, 9) @ torch.randn(9, 9) + 3 * torch.randn(9)) for _ in range(3)]
    weight, bias, origin = discriminant(tasks)
    covariance = sum(t.directions.T @ t.directions + torch.diag(t.left) for t in tasks) / 3
    level = covariance.trace() / 9
    covariance = (1 - SHRINKAGE) * covariance + SHRINKAGE * level * torch.eye(9)
    means = torch.stack([t.mean.double() for t in tasks])
    x = torch.randn(5, 9).double()
    distances = torch.stack([(d := x - mean) @ torch.linalg.inv(covariance) * d for mean in means], 1).sum(-1)
    own = (x.float() - origin) @ weight.T + bias
    expected = -distances / 2
    torch.testing.assert_close(
        own - own[:, :1], (expected - expected[:, :1]).float(), rtol=1e-4, atol=1e-3
    )  # up to what is alike for all tasks


def test_a_summary_does_not_see_padding():
    x = torch.randn(2, 5, 4)
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    found = summary(x, mask)
    alone = summary(x[:1, :3], None)
    torch.testing.assert_close(found[:1], alone)
    torch.testing.assert_close(found[1:], summary(x[1:], None))
    assert summary(x, torch.zeros_like(mask)).isfinite().all()


def test_the_layer_is_the_first_of_the_first_block_to_run(made):
    base, adapters = made
    assert first_layer(base, inputs_of("low", 2)) == LAYER
    assert first_layer(dts.DTSModel(copy.deepcopy(base)), inputs_of("low", 2)) == LAYER
    with pytest.raises(ValueError, match="no numbered blocks"):
        first_layer(torch.nn.Linear(3, 3), {"input": torch.ones(1, 3)})
    with pytest.raises(ValueError, match="no layer whose weight is called 'x'"):
        input_statistics(base, [inputs_of("low", 8)], layer="x")
    with pytest.raises(ValueError, match="there are no inputs"):
        input_statistics(base, [])


def test_adapters_that_hold_nothing_of_the_first_block_are_told_apart(told):
    base, adapters = told
    model = dts.DTSModel(copy.deepcopy(base))
    for task, adapter in adapters.items():
        model.load_task(task, adapter)
    for padding in (0, 4):
        for task in HALVES:
            assert model.choose_tasks(inputs_of(task, 20, padding)).tasks.count(task) >= 17
    batch = {name: torch.cat([inputs_of(task, 3)[name] for task in HALVES]) for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        chosen = model(**batch, tasks="auto").last_hidden_state
        by_hand = model(**batch, tasks=["low"] * 3 + ["high"] * 3).last_hidden_state
    torch.testing.assert_close(chosen, by_hand)


def test_without_examples_the_error_says_how_to_give_them(made):
    base, adapters = made
    with pytest.raises(ValueError, match="dts route tells the adapters of low, high"):
        task_router(base, adapters, inputs_of("low", 2))


def test_one_that_knows_its_inputs_beside_one_that_does_not(made, told):
    base, known = told
    mixed = {"low": known["low"], "high": made[1]["high"]}
    with pytest.raises(ValueError, match="dts route tells the adapters of high"):
        task_router(base, mixed, inputs_of("low", 2))
    with pytest.raises(ValueError, match="do not know the same layer's inputs"):
        LikelihoodRouter.of(base, mixed)


def test_adapters_told_of_other_layers_are_refused(told):
    base, adapters = told
    other = input_statistics(base, [inputs_of("low", 9)], layer="encoder.layer.1.attention.self.key.weight")
    adapters["low"].tell(other)
    with pytest.raises(ValueError, match="the same layer's inputs.*layer.1.*layer.0"):
        task_router(base, adapters, inputs_of("low", 2))
    for adapter in adapters.values():
        adapter.tell(replace(other, layer="decoder.0.weight"))
    with pytest.raises(ValueError, match="no layer 'decoder.0.weight'"):
        task_router(base, adapters, inputs_of("low", 2))


def test_energies_count_beside_it_where_all_tasks_have_them(made):
    base, _ = made
    adapters = adapters_with_noise(base, "layer.0.attention")
    batch = inputs_of("low", 4)
    plain = task_router(base, adapters, batch)
    assert isinstance(plain, EnergyRouter)
    adapters["low"].tell(input_statistics(base, [inputs_of("low", 32)]))
    with pytest.warns(UserWarning, match="high know nothing of their inputs"):
        assert isinstance(task_router(base, adapters, batch), EnergyRouter)
    adapters["high"].tell(input_statistics(base, [inputs_of("high", 32)]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        both = task_router(base, adapters, batch)
    alone = replace(both, energies=None)
    sum_of_both = alone.route(base, batch).scores + plain.route(base, batch).scores
    torch.testing.assert_close(both.route(base, batch).scores, sum_of_both, rtol=1e-4, atol=1e-4)
