"""Routing by energy: its formula, whole models, fallbacks, and the two baselines."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from dts.codec import compress_tensor
from dts.codec.parts import components, sample
from dts.unseen import EnergyRouter, NameRouter, ProbeRouter, choose, scrambled
from dts.unseen.passes import layer_inputs
from dts.unseen.router import TINY, Subspaces
from dts_kernels.layout import unpack


def adapter(**deltas):
    """Something with entries, as an adapter has: {name: delta} compressed."""
    entries = {}
    for name, delta in deltas.items():
        name = name.replace("__", ".")
        entries[name] = SimpleNamespace(
            kind="factors", base_name=name, shape=tuple(delta.shape), factors=compress_tensor(delta, rank=4)
        )
    return SimpleNamespace(entries=entries, class_names=None, description=None, method="residual")


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(50, 12)
        self.blocks = nn.ModuleList(nn.Linear(12, 12) for _ in range(2))
        self.ran = []
        for i, block in enumerate(self.blocks):
            block.register_forward_hook(lambda *_, i=i: self.ran.append(i))

    def forward(self, input_ids, attention_mask=None):
        x = self.embed(input_ids)
        for block in self.blocks:
            x = block(x)
        return x.mean(1)


def task_delta(inputs, generator):
    """What gradient descent on these inputs [samples, n] leaves: outer products with them."""
    return torch.randn(12, len(inputs), generator=generator) @ inputs / 100


@pytest.fixture
def routed():
    """A model and two tasks, each fine-tuned on its own half of the tokens."""
    generator, model = torch.Generator().manual_seed(1), Model()
    halves = {"low": torch.arange(4), "high": torch.arange(25, 29)}
    adapters = {
        task: adapter(blocks__0__weight=task_delta(model.embed.weight[ids].detach(), generator))
        for task, ids in halves.items()
    }
    return model, adapters, halves


def test_energy_equals_its_formula(routed):
    model, adapters, _ = routed
    router = EnergyRouter.of(model, adapters, rank=4)
    x = torch.randn(3, 5, 12)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 0, 0, 0, 0]])
    energies = router.energies({"blocks.0.weight": x}, mask)["blocks.0.weight"]
    for t, one in enumerate(adapters.values()):
        packed = one.entries["blocks.0.weight"].factors.packed
        values = torch.tensor([1.0, 4.0, -1.0, -4.0])
        u, v = values[unpack(packed.u, packed.rank).long()], values[unpack(packed.v, packed.rank).long()]
        for row in range(3):
            tokens = [x[row, j] for j in range(5) if mask[row, j]]
            s = packed.sigma * u.norm(dim=0)
            total = (s * v).square().sum()
            relative = [(s * (token @ v)).square().sum() * 12 / total / token.square().sum() for token in tokens]
            expected = sum((e + TINY).log() for e in relative).item() / len(tokens)
            assert energies[row, t].item() == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_energy_of_random_directions_is_one():
    table = torch.randn(2, 3, 40) * torch.tensor([1.0, 30.0])[:, None, None]
    table /= (table.square().sum((1, 2), keepdim=True) / 40).sqrt()
    layer = Subspaces(table, False, torch.zeros(2, dtype=torch.bool))
    energies = layer.energies(torch.randn(20_000, 1, 40), None).exp()
    assert energies.mean(0).tolist() == pytest.approx([1, 1], rel=0.05)


def test_routes_inputs_to_the_task_they_are_of(routed):
    model, adapters, halves = routed
    router = EnergyRouter.of(model, adapters)
    ids = torch.cat([ids.repeat(8)[torch.randperm(32)[:6]][None] for ids in halves.values() for _ in range(10)])
    choice = router.route(model, {"input_ids": ids})
    assert choice.tasks == ["low"] * 10 + ["high"] * 10
    assert choice.names == ["low", "high"] and choice.scores.shape == (20, 2)
    assert ((0.5 <= choice.confidence) & (choice.confidence <= 1)).all()


def test_padding_does_not_count(routed):
    model, adapters, _ = routed
    router = EnergyRouter.of(model, adapters)
    alone = router.route(model, {"input_ids": torch.tensor([[1, 2]])})
    padded = router.route(
        model, {"input_ids": torch.tensor([[1, 2, 26, 26, 26]]), "attention_mask": torch.tensor([[1, 1, 0, 0, 0]])}
    )
    torch.testing.assert_close(alone.scores, padded.scores)


def test_falls_back_to_the_base_below_a_floor(routed):
    model, adapters, _ = routed
    choice = EnergyRouter.of(model, adapters).route(model, {"input_ids": torch.tensor([[1, 1], [40, 45]])}, floor=1.01)
    assert choice.tasks == [None, None]


def test_the_pass_stops_at_the_last_layer_it_needs(routed):
    model, adapters, _ = routed
    EnergyRouter.of(model, adapters).route(model, {"input_ids": torch.tensor([[1]])})
    assert model.ran == []  # the input of block 0 was enough: not even block 0 ran
    layer_inputs(model, {"b": model.blocks[1]}, {"input_ids": torch.tensor([[1]])})
    assert model.ran == [0]
    model(torch.tensor([[1]]))
    assert model.ran == [0, 0, 1]  # and no hook was left behind


def test_calibration_takes_a_tasks_general_loudness_away(routed):
    model, adapters, halves = routed
    loud = torch.ones(12, 1) @ model.embed.weight.mean(0, keepdim=True)  # a direction that all inputs share
    common = {t: a for t, a in adapters.items()} | {"loud": adapter(blocks__0__weight=loud.detach())}
    everything = {"input_ids": torch.stack([halves[t][torch.randint(4, (6,))] for t in halves for _ in range(20)])}
    router = EnergyRouter.of(model, common).calibrate(model, everything)
    scores = router.scores(layer_inputs(model, router.modules, everything))
    assert scores.mean(0).abs().max() < 1e-4


def test_scrambled_inputs_keep_markers_padding_and_values():
    ids = torch.tensor([[101, 7, 8, 9, 102, 0], [101, 5, 102, 0, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 1, 1, 0], [1, 1, 1, 0, 0, 0]])
    pixels = torch.randn(2, 3, 4)
    out = scrambled({"input_ids": ids, "attention_mask": mask, "pixel_values": pixels}, 1_000_000)
    changed = torch.tensor([[0, 1, 1, 1, 0, 0], [0, 1, 0, 0, 0, 0]], dtype=torch.bool)
    assert torch.equal(out["input_ids"] != ids, changed) and torch.equal(out["attention_mask"], mask)
    for before, after in zip(pixels, out["pixel_values"]):
        assert torch.equal(before.flatten().sort().values, after.flatten().sort().values)
    assert not torch.equal(pixels, out["pixel_values"])


def test_embeddings_route_by_token(routed):
    model, _, halves = routed
    adapters = {}
    for task, ids in halves.items():
        delta = torch.zeros(50, 12)
        delta[ids] = torch.randn(4, 12)
        adapters[task] = adapter(embed__weight=delta)
    router = EnergyRouter.of(model, adapters, layers=lambda name: name == "embed.weight")
    choice = router.route(model, {"input_ids": torch.tensor([[1, 2, 40], [26, 27, 41], [3, 0, 1]])})
    assert choice.tasks == ["low", "high", "low"]


def test_names_with_another_prefix_and_conv1d(routed):
    conv = pytest.importorskip("transformers.pytorch_utils").Conv1D
    inner = nn.ModuleDict({"h": nn.ModuleList([nn.ModuleDict({"fc": conv(6, 12)})])})
    model = nn.ModuleDict({"transformer": inner})
    directions = torch.eye(12)[:2]
    adapters = {f"t{i}": adapter(h__0__fc__weight=torch.outer(d, torch.randn(6))) for i, d in enumerate(directions)}
    router = EnergyRouter.of(model, adapters)
    scores = router.scores({"h.0.fc.weight": directions[:, None, :]})
    assert scores.argmax(1).tolist() == [0, 1]


def test_no_layer_to_look_at():
    with pytest.raises(ValueError, match="first 1 blocks"):
        EnergyRouter.of(Model(), {"a": adapter(blocks__1__weight=torch.randn(12, 12))})


def test_a_pooler_behind_the_blocks_is_not_waited_for(routed):
    model, adapters, _ = routed
    model.pooler = nn.Linear(12, 12)
    with_pooler = adapter(blocks__0__weight=torch.randn(12, 12), pooler__weight=torch.randn(12, 12))
    assert list(EnergyRouter.of(model, {"a": with_pooler}).modules) == ["blocks.0.weight"]
    assert set(EnergyRouter.of(model, {"a": with_pooler}, layers=lambda name: True).modules) == {
        "blocks.0.weight",
        "pooler.weight",
    }


def test_a_layer_that_does_not_run_is_named(routed):
    model, _, _ = routed
    with pytest.raises(RuntimeError, match="aside"):
        layer_inputs(model, {"aside": nn.Linear(2, 2)}, {"input_ids": torch.tensor([[1]])})


def test_name_router():
    vectors = {"cat": [1, 0], "dog": [1, 1], "car": [0, 1], "a cat sat": [5, 1], "a lorry": [0, 3]}
    router = NameRouter({"pets": ["cat", "dog"], "traffic": ["car"]}, lambda texts: [vectors[t] for t in texts])
    assert router.route(["a lorry", "a cat sat"]).tasks == ["traffic", "pets"]


@pytest.mark.parametrize("tasks", [2, 3])
def test_probe_equals_scikit_learn(tasks):
    linear_model = pytest.importorskip("sklearn.linear_model")
    torch.manual_seed(0)
    features = {f"t{i}": torch.randn(50, 6) * torch.arange(1, 7) + i for i in range(tasks)}
    probe = ProbeRouter.fit(features)
    x = torch.cat(list(features.values())).double()
    scaled = ((x - x.mean(0)) / x.std(0)).numpy()
    oracle = linear_model.LogisticRegression(max_iter=1000).fit(scaled, [i for i in range(tasks) for _ in range(50)])
    expected = torch.from_numpy(oracle.predict_proba(scaled)).float()
    torch.testing.assert_close(probe.scores(x.float()).softmax(1), expected, rtol=1e-4, atol=1e-5)


def test_choose():
    choice = choose(torch.tensor([[2.0, 0.0], [0.0, 0.1]]), ["a", "b"], floor=0.6)
    assert choice.tasks == ["a", None]


def with_samples_alone(factors):
    shape = factors.compact_shape
    return replace(factors, stored=(components.none(shape), sample.planned(32, shape)))


def test_a_task_without_components_in_a_layer_is_absent_there_and_is_never_nan(routed):
    model, adapters, halves = routed
    entry = adapters["low"].entries["blocks.0.weight"]
    entry.factors = with_samples_alone(entry.factors)
    router = EnergyRouter.of(model, adapters)
    assert router.absent.tolist() == [True, False]
    ids = halves["high"][None]
    scores = router.scores(layer_inputs(model, router.modules, {"input_ids": ids}))
    assert scores.isfinite().all() and scores[0, 0] == 0
    lookups = {task: adapter(embed__weight=torch.randn(50, 12)) for task in adapters}
    found = lookups["low"].entries["embed.weight"]
    found.factors = with_samples_alone(found.factors)
    router = EnergyRouter.of(model, lookups, layers=lambda name: True)
    assert router.absent.tolist() == [True, False]
    assert router.scores({"embed.weight": ids}).isfinite().all()


def test_samples_alone_in_every_layer_are_refused(routed):
    model, adapters, _ = routed
    for one in adapters.values():
        entry = one.entries["blocks.0.weight"]
        entry.factors = with_samples_alone(entry.factors)
    with pytest.raises(ValueError, match="samples alone .* no components to know them by"):
        EnergyRouter.of(model, adapters)
