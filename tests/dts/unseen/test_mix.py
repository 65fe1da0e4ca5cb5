"""A mixed adapter is the weighted sum of its members, and an adapter like any other."""

import pytest
import torch

import dts
from dts.adapter.prefixes import Prefixes
from dts.codec import compress_tensor
from dts.unseen.concatenate import concatenated, mixed_factors
from dts.unseen.mix import NotExact, mix


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def models(tasks=2, **extra):
    base = {"body.a.weight": randn(20, 12), "body.b.weight": randn(12, 20, seed=1), "body.a.bias": randn(20, seed=2)}
    tuned = {}
    for t in range(tasks):
        tuned[f"t{t}"] = {n: v + 0.1 * randn(*v.shape, seed=10 * t + i + 3) for i, (n, v) in enumerate(base.items())}
        tuned[f"t{t}"]["head.weight"] = randn(2 + t, 12, seed=t)
    return base, tuned


def compressed(base, tuned, **options):
    options = {"rank_fraction": 0.3} | options
    return {name: dts.compress(base, model, name=name, **options) for name, model in tuned.items()}


def dense(base, adapters, weights):
    """theta + sum gamma Delta, from each adapter's own reconstruction."""
    total = {n: v.double() for n, v in base.items()}
    for task, gamma in weights.items():
        for name, value in adapters[task].apply(base):
            if name in total:
                total[name] = total[name] + gamma * (value.double() - base[name].double())
    return total


def assert_same_model(adapter, base, expected, tolerance=2e-6):
    got = dict(adapter.apply(base))
    assert set(got) == set(expected)
    for name, value in got.items():
        torch.testing.assert_close(value.double(), expected[name], rtol=0, atol=tolerance)


@pytest.mark.parametrize("ranks", [(3,), (5, 2), (4, 4, 1)])
def test_concatenated_factors_are_the_weighted_sum(ranks):
    gammas = (0.7, -0.2, 1)
    members = [(gammas[i], compress_tensor(randn(20, 12, seed=i), rank=rank)) for i, rank in enumerate(ranks)]
    factors = concatenated(members)
    expected = sum(g * f.reconstruct(dtype=torch.float64) for g, f in members)
    assert factors.rank == sum(f.rank for _, f in members)
    torch.testing.assert_close(factors.reconstruct(dtype=torch.float64), expected, rtol=0, atol=1e-6)
    assert factors.norm == pytest.approx(expected.norm().item(), rel=1e-5)


def test_a_prefix_of_a_mixture_is_fitted_to_it_and_knows_its_error():
    factors = concatenated([(0.5, compress_tensor(randn(20, 12, seed=i), rank=6)) for i in range(2)])
    whole, part = factors.reconstruct(), factors.prefix(5)
    error = ((part.reconstruct() - whole).norm() / whole.norm()).square().item()
    assert part.squared_error == pytest.approx(error, rel=1e-2)


def test_other_zero_rows_are_encoded_anew():
    one, other = randn(20, 12), randn(20, 12, seed=1)
    one[:5], other[10:] = 0, 0
    members = [(0.5, compress_tensor(d, rank=12)) for d in (one, other)]
    factors, exact = mixed_factors(members)
    expected = sum(g * f.reconstruct() for g, f in members)
    assert not exact
    error = ((factors.reconstruct() - expected).norm() / expected.norm()).square().item()
    assert factors.squared_error == pytest.approx(error, rel=1e-3, abs=1e-6) and error < 0.05


def test_a_mixed_adapter_is_the_mixture(tmp_path):
    base, tuned = models()
    adapters = compressed(base, tuned)
    weights = {"t0": 0.7, "t1": 0.3}
    mixed = mix(adapters, weights, tmp_path / "mixed", name="new", class_names=["stripes", "dots"])
    expected = dense(base, adapters, weights)
    assert_same_model(mixed, base, expected)
    loaded = dts.Adapter.load(tmp_path / "mixed")
    assert_same_model(loaded, base, expected)
    assert (loaded.name, loaded.class_names, loaded.kind) == ("new", ["stripes", "dots"], "task")
    assert loaded.nbytes == sum(f.stat().st_size for f in (tmp_path / "mixed").iterdir())
    assert loaded.verify(base).ok
    assert "head.weight" not in loaded.entries
    assert "0.7 t0 + 0.3 t1" in loaded.config["created"]["command"]


def test_whole_values_are_mixed_as_differences():
    base, tuned = models()
    for model in (base, *tuned.values()):
        model["body.a.bias"] = model["body.a.bias"].bfloat16()  # too coarse for a difference to give it back
    adapters = compressed(base, tuned)
    assert "value" in {a.entries["body.a.bias"].kind for a in adapters.values()}
    weights = {"t0": 0.5, "t1": 0.5}
    with pytest.raises(ValueError, match="body.a.bias is stored as a whole value: give base="):
        mix(adapters, weights)
    mixed = dict(mix(adapters, weights, base=base).apply(base))["body.a.bias"]
    expected = dense(base, adapters, weights)["body.a.bias"]
    torch.testing.assert_close(mixed.double(), expected, rtol=2**-7, atol=2**-9)


def test_names_are_the_bases_whatever_prefix_a_fine_tune_has():
    base, tuned = models()
    tuned["t1"] = {f"model.{n}": v for n, v in tuned["t1"].items()}
    adapters = compressed(base, tuned)
    mixed = mix(adapters, {"t0": 0.5, "t1": 0.5})
    assert set(mixed.entries) == set(base)


def test_a_tensor_only_some_members_change():
    base, tuned = models()
    tuned["t0"]["body.b.weight"] = base["body.b.weight"].clone()
    adapters = compressed(base, tuned)
    weights = {"t0": 0.5, "t1": 0.5}
    assert_same_model(mix(adapters, weights), base, dense(base, adapters, weights))


def test_paper_factors_are_encoded_anew_and_named():
    base, tuned = models()
    adapters = compressed(base, tuned, method="paper")
    with pytest.warns(NotExact, match="body.a.weight, body.b.weight"):
        mix(adapters, {"t0": 0.5, "t1": 0.5})


def test_experts():
    name = "mlp.experts.down"
    base = {name: randn(3, 10, 8)}
    tuned = {f"t{t}": {name: base[name] + 0.1 * randn(3, 10, 8, seed=t + 1)} for t in (0, 1)}
    tuned["t0"][name][1] = base[name][1]
    adapters = compressed(base, tuned)
    weights = {"t0": 0.4, "t1": 0.6}
    assert_same_model(mix(adapters, weights), base, dense(base, adapters, weights))


def test_a_budget_is_kept_and_the_base_makes_it_better():
    base = {f"body.{i}.weight": randn(96, 64, seed=i) for i in range(4)}
    tuned = {
        f"t{t}": {n: v + 0.1 * randn(96, 64, seed=50 + 10 * t + i) for i, (n, v) in enumerate(base.items())}
        for t in (0, 1)
    }
    adapters, weights = compressed(base, tuned, rank_fraction=1.0), {"t0": 0.5, "t1": 0.5}
    exact = mix(adapters, weights)
    size = exact.nbytes // 2
    truncated, encoded = mix(adapters, weights, nbytes=size), mix(adapters, weights, nbytes=size, base=base)
    assert truncated.nbytes <= size and encoded.nbytes <= size
    expected = dense(base, adapters, weights)
    lost = [sum((v.double() - expected[n]).square().sum() for n, v in a.apply(base)) for a in (truncated, encoded)]
    assert lost[1] < lost[0]


def test_refuses_what_cannot_be_mixed():
    base, tuned = models()
    adapters = compressed(base, tuned)
    with pytest.raises(ValueError, match="no adapter t9; there are t0, t1"):
        mix(adapters, {"t9": 1.0})
    with pytest.raises(ValueError, match="the mixture is the base itself"):
        mix(adapters, {})
    other = {n: v + 1 for n, v in base.items()}
    adapters["t1"] = dts.compress(other, tuned["t1"], rank_fraction=0.3)
    with pytest.raises(ValueError, match="differ in their base"):
        mix(adapters, {"t0": 0.5, "t1": 0.5})
    with pytest.raises(ValueError, match="at most one"):
        mix(adapters, {"t0": 1.0}, budget=0.1, nbytes=10)


def test_rows_that_are_added_alone_leave_the_tensor_at_the_base(tmp_path):
    base, tuned = models()
    table = randn(30, 24)
    base["table.weight"] = table
    for seed, model in enumerate(tuned.values()):
        model["table.weight"] = torch.cat([table, randn(2, 24, seed=seed)])
    adapters = compressed(base, tuned)
    mixed = mix(adapters, {"t0": 0.5, "t1": 0.5}, tmp_path / "m")
    assert "table.weight" not in mixed.entries
    assert torch.equal(dict(dts.Adapter.load(tmp_path / "m").apply(base))["table.weight"], table)
    fates = [fate for fate in mixed.account.fates if fate.name == "table.weight"]
    assert [(fate.model, fate.what) for fate in fates] == [("t0", "skipped"), ("t1", "skipped")]


def alone(seed: int, rows: int = 384, gap: bool = False):
    """A sample alone of a [384, 384] matrix."""
    delta = randn(rows, 384, seed=seed) / 100
    if gap:
        delta = torch.cat([torch.zeros(384, 384), delta])
    factors = compress_tensor(delta, "sketch", rank=4)
    assert not factors.rank and factors.samples
    return factors


def test_samples_alone_are_mixed_exactly_and_are_worth_something_where_the_mixture_is_cut():
    members = [(0.5, alone(0)), (-2.0, alone(1))]
    factors = concatenated(members)
    expected = sum(g * f.reconstruct(dtype=torch.float64) for g, f in members)
    torch.testing.assert_close(factors.reconstruct(dtype=torch.float64), expected, rtol=0, atol=1e-5)
    assert factors.norm == pytest.approx(sum((g * f.norm) ** 2 for g, f in members) ** 0.5)
    found = Prefixes.of(factors, False)
    assert 0 < found.curve.errors[1] < found.curve.errors[0] == factors.norm**2
    assert found.at(found.curve.ranks[1]) is factors and found.at(0) is None


def test_samples_alone_of_other_rows_leave_nothing_that_could_be_encoded_anew():
    first, second = alone(0, 768), alone(1, gap=True)
    assert mixed_factors([(0.5, first), (0.5, second)]) == (None, False)
    with_components = compress_tensor(first.reconstruct(), rank=4)
    mixed, exact = mixed_factors([(0.5, with_components), (0.5, second)])
    assert not exact and mixed is not None and mixed.rank <= 4


def sampled(gap: bool = False):
    base = {"a.weight": randn(768, 384), "b.weight": randn(20, 12)}
    deltas = [randn(768, 384, seed=seed) / 100 for seed in (1, 2)]
    if gap:
        deltas[1][:384] = 0
    made = {}
    for seed, delta in enumerate(deltas):
        tuned = {"a.weight": base["a.weight"] + delta, "b.weight": base["b.weight"] + randn(20, 12, seed=5 + seed)}
        made[f"t{seed}"] = adapter = dts.compress(base, tuned, method="sketch", rank_fraction=0.0104, name=f"t{seed}")
        factors = adapter.entries["a.weight"].factors
        assert not factors.rank and factors.samples
    return base, made


def test_a_mixture_with_samples_alone_is_cut_without_its_base_alone():
    base, adapters = sampled()
    weights = {"t0": 0.5, "t1": 0.5}
    assert_same_model(mix(adapters, weights), base, dense(base, adapters, weights), 1e-5)
    with pytest.raises(ValueError, match="samples alone, without components, in a.weight"):
        mix(adapters, weights, base=base, nbytes=20_000)


def test_samples_alone_that_do_not_fit_side_by_side_are_named():
    _, adapters = sampled(gap=True)
    with pytest.warns(NotExact, match=r"a.weight \(samples alone, of other rows or columns: left at the base\)"):
        mixture = mix(adapters, {"t0": 0.5, "t1": 0.5})
    assert "a.weight" not in mixture.entries and "b.weight" in mixture.entries
    assert "samples alone" in str(mixture.account.as_dict())
