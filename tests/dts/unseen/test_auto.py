"""Routing in front of a real model: `DTSModel` over transformers, tasks chosen from the inputs alone."""

import copy

import pytest
import torch

import dts
from dts.unseen import EnergyRouter, calibrated_router
from dts.unseen.passes import layer_inputs

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module", params=["bert", "gpt2"])
def served(request):
    """A base with two fine-tunes, each trained on its own half of the vocabulary to give the token before: a task of
    its attention, whose queries, keys and values the router reads."""
    torch.manual_seed(0)
    if request.param == "bert":
        config = transformers.BertConfig(
            vocab_size=60,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            max_position_embeddings=16,
        )
        base = transformers.BertForMaskedLM(config).eval()
    else:
        config = transformers.GPT2Config(vocab_size=60, n_embd=32, n_layer=2, n_head=2, n_positions=16)
        base = transformers.GPT2LMHeadModel(config).eval()
    halves = {"low": torch.arange(2, 30), "high": torch.arange(30, 60)}
    adapters = {}
    for task, ids in halves.items():
        tuned = copy.deepcopy(base)
        optimizer = torch.optim.Adam(tuned.parameters(), lr=3e-4)
        for _ in range(60):
            tokens = ids[torch.randint(len(ids), (8, 10))]
            tuned(input_ids=tokens, labels=tokens.roll(1, 1)).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        adapters[task] = dts.compress(base, tuned, name=task, rank_fraction=0.3)
    model = dts.DTSModel(copy.deepcopy(base))
    for task, adapter in adapters.items():
        model.load_task(task, adapter)
    return model, base, adapters, halves


def batch_of(halves, rows):
    tokens = [ids[torch.randint(len(ids), (rows, 10))] for ids in halves.values()]
    return {"input_ids": torch.cat(tokens), "attention_mask": torch.ones(2 * rows, 10, dtype=torch.long)}


def test_routes_each_row_and_the_answers_are_its_tasks(served):
    model, _, adapters, halves = served
    batch = batch_of(halves, 20)
    router = calibrated_router(model, adapters, batch)
    choice = router.route(model, batch)
    gold = ["low"] * 20 + ["high"] * 20
    assert sum(a == b for a, b in zip(choice.tasks, gold)) >= 35
    with torch.no_grad():
        together = model(**batch, tasks=choice.tasks).logits
        model.set_task("high")
        alone = model(**batch).logits
        model.set_task(None)
    rows = [i for i, task in enumerate(choice.tasks) if task == "high"]
    torch.testing.assert_close(together[rows], alone[rows], rtol=1e-4, atol=1e-4)


def test_the_pass_is_the_bases_whatever_task_is_set(served):
    model, base, adapters, halves = served
    batch = batch_of(halves, 4)
    router = calibrated_router(model, adapters, batch)
    free = router.route(model, batch).scores
    model.set_task("low")
    torch.testing.assert_close(router.route(model, batch).scores, free)
    assert model.status()["current"] == [{"low": 1.0}]
    model.set_task(None)
    plain = calibrated_router(base, adapters, batch).route(base, batch).scores
    torch.testing.assert_close(plain, free, rtol=1e-3, atol=1e-3)


def test_auto_in_a_call(served):
    model, _, adapters, halves = served
    batch = batch_of(halves, 6)
    with torch.no_grad():
        chosen = model(**batch, tasks="auto").logits
        torch.testing.assert_close(chosen, model(**batch, tasks=model.choice.tasks).logits)
        with pytest.raises(ValueError, match="by name"):
            model(batch["input_ids"], tasks="auto")
    assert model.choice.confidence.shape == (12,)
    with pytest.raises(ValueError, match="another name"):
        model.load_task("auto", adapters["low"])
    again = dts.DTSModel(copy.deepcopy(model.model))
    with pytest.raises(ValueError, match="none is loaded"):
        again.choose_tasks(batch)


def test_the_router_of_a_model_reads_no_further_than_the_first_blocks_inputs(served):
    model, _, adapters, halves = served
    batch = batch_of(halves, 4)
    whole = EnergyRouter.of(model, adapters)
    first = calibrated_router(model, adapters, batch)
    assert set(first.layers) < set(whole.layers) and set(first.centre) == set(first.layers) == set(first.modules)
    inputs = list(layer_inputs(model, first.modules, batch).values())
    assert all(x is inputs[0] for x in inputs)
    ran = []
    after = next(m for n, m in whole.modules.items() if n not in first.modules)
    handle = after.register_forward_hook(lambda *_: ran.append(1))
    first.route(model, batch)
    handle.remove()
    assert not ran


def test_unlabelled_inputs_of_all_tasks_become_the_zero(served):
    base, plain, adapters, halves = served
    model = dts.DTSModel(copy.deepcopy(plain))
    with pytest.raises(ValueError, match="none is loaded"):
        model.calibrate_tasks(batch_of(halves, 2))
    for task, adapter in adapters.items():
        model.load_task(task, adapter)
    pool, batch = batch_of(halves, 10), batch_of(halves, 6)
    model.calibrate_tasks(pool)
    torch.testing.assert_close(model.choose_tasks(pool).scores.mean(0), torch.zeros(2), atol=1e-4, rtol=0)
    expected = EnergyRouter.of(base, adapters).first_layers(base, batch).calibrate(base, pool).route(base, batch)
    torch.testing.assert_close(model.choose_tasks(batch).scores, expected.scores, rtol=1e-4, atol=1e-4)
    model.delete_task("low")
    assert model.choose_tasks(batch).names == ["high"]


def test_layers_that_the_loader_renames_are_looked_at(tmp_path):
    """Files of a DINOv2 hold the names of older releases; its queries, keys and values were passed over."""
    config = transformers.Dinov2Config(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=28)
    torch.manual_seed(0)
    base = transformers.Dinov2Model(config)
    base.save_pretrained(tmp_path / "base")
    tuned = copy.deepcopy(base)
    with torch.no_grad():
        for parameter in tuned.parameters():
            parameter += 0.01 * torch.randn_like(parameter)
    tuned.save_pretrained(tmp_path / "tuned")
    adapter = dts.compress(tmp_path / "base", tmp_path / "tuned", rank_fraction=0.3)
    batch = {"pixel_values": torch.randn(2, 3, 28, 28)}
    for model in (base, dts.DTSModel.from_pretrained(tmp_path / "base", adapters={"a": adapter})):
        layers = calibrated_router(model, {"a": adapter}, batch).layers
        assert sorted(name.split(".")[-2] for name in layers) == ["key", "query", "value"]


def test_auto_where_only_the_tasks_have_a_head(tmp_path):
    torch.manual_seed(0)
    sizes = dict(vocab_size=60, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)
    transformers.BertModel(transformers.BertConfig(**sizes)).save_pretrained(tmp_path / "base")
    adapters = {}
    for task, labels in (("two", 2), ("three", 3)):
        tuned = transformers.BertForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=labels)
        with torch.no_grad():
            for name, parameter in tuned.named_parameters():
                if parameter.dim() == 2 and "classifier" not in name:
                    parameter += 1e-3 * torch.randn_like(parameter)
        tuned.save_pretrained(tmp_path / task)
        adapters[task] = dts.compress(tmp_path / "base", tmp_path / task, name=task, rank_fraction=0.3)
    model = dts.DTSModel.from_pretrained(tmp_path / "base", adapters=adapters)
    ids = torch.randint(60, (4, 8))
    with torch.no_grad():  # no task is set, and the base has no classifier to read
        out = model(input_ids=ids, tasks="auto")
    assert [len(row) for row in model.task_logits(out)] == [{"two": 2, "three": 3}[t] for t in model.choice.tasks]
