"""Adapters of method "sketch": in a folder, in a model, cut, and mixed."""

from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from typer.testing import CliRunner

import dts
from dts.adapter import AdapterError
from dts.cli.app import app
from dts.unseen.router import EnergyRouter
from dts_kernels.borrowed import BorrowedFactors
from dts_kernels.samples import Samples
from tests.fuzz.form import opened, tensors_in

torch.manual_seed(0)
BASE = {f"body.{i}.weight": torch.randn(96, 64 if i % 2 else 200) for i in range(3)}
BASE["mlp.experts"] = torch.randn(2, 40, 64)


def tuned(seed: int) -> dict[str, torch.Tensor]:
    draw = partial(torch.randn, generator=torch.Generator().manual_seed(seed))
    low = lambda *batch, m, n: draw(*batch, m, 8) @ draw(*batch, 8, n) / 8**0.5  # noqa: E731
    return {
        name: value + 0.1 * (low(*value.shape[:-2], m=value.shape[-2], n=value.shape[-1]) + draw(value.shape) / 2)
        for name, value in BASE.items()
    }


def compressed(seed: int = 1, **options) -> dts.Adapter:
    return dts.compress(BASE, tuned(seed), **{"budget": 0.06, "method": "sketch"} | options)


def dense(adapter) -> dict[str, torch.Tensor]:
    return {name: value - BASE[name] for name, value in adapter.apply(BASE)}


def test_the_folder_holds_samples_and_gives_them_back(tmp_path):
    adapter = compressed(out=tmp_path / "a", vectors="exact")
    planned = compressed(dry_run=True)
    assert adapter.nbytes == sum(path.stat().st_size for path in (tmp_path / "a").iterdir())
    assert abs(planned.nbytes - adapter.nbytes) <= 0.02 * adapter.nbytes and adapter.amr <= 0.06
    assert planned.prediction.squared_error == pytest.approx(adapter.config["squared_error"], rel=0.15)
    assert planned.prediction.lower < adapter.config["squared_error"] < planned.prediction.upper
    stored = tensors_in(tmp_path / "a")
    loaded = dts.Adapter.load(tmp_path / "a")
    for name, entry in adapter.entries.items():
        for ours, theirs in zip(entry.matrices, loaded.entries[name].matrices):
            assert theirs.samples and all(torch.equal(a.codes, b.codes) for a, b in zip(ours.samples, theirs.samples))
            about = [[(s.scale, s.stride, s.seed, s.shape) for s in f.samples] for f in (ours, theirs)]
            assert about[0] == about[1]
        if entry.kind == "factors":
            assert torch.equal(stored[f"{name}.samples"], entry.factors.samples[0].codes)
            assert entry.factors.nbytes == sum(stored[f"{name}.{key}"].nbytes for key in ("u", "v", "sigma", "samples"))
    assert loaded.verify(BASE, tuned(1)).problems == []
    assert adapter.method == loaded.method == "sketch"
    assert "mostly the sketch's noise" in CliRunner().invoke(app, ["inspect", str(tmp_path / "a")]).output


def test_samples_share_the_memory_of_all_codes(tmp_path):
    again = dts.Adapter.load(compressed().save(tmp_path / "a"))
    parts = [part for entry in again.entries.values() for f in entry.matrices for part in f.stored]
    samples = [part for part in parts if isinstance(part, Samples)]
    factors = [part for part in parts if isinstance(part, BorrowedFactors)]
    assert len(samples) > 1 and len(samples) + len(factors) == len(parts)
    memory = {t.untyped_storage().data_ptr() for t in [*[s.codes for s in samples], *[f.u for f in factors]]}
    assert len(memory) == 1 and all(s.codes.data_ptr() % 16 == 0 for s in samples)


def named(rows, name):
    return next(row for row in rows if row[0] == name)


def damaged(folder, change_config=None, change_tensors=None):
    compressed(out=folder)
    inner = opened(folder)
    if change_config:
        change_config(inner.config["tensors"]["body.0.weight"])
    if change_tensors:
        change_tensors(inner.rows)
    inner.write(folder)


WRONG_ROWS = [
    ("stride", 0),
    ("stride", 10**12),
    ("stride", 1),
    ("stride", "4"),
    ("seed", 2**32),
    ("seed", None),
    ("scale", "1.0"),
    ("scale", float("nan")),
    ("scale", None),
    ("share", [1, 1]),  # which is left out
    ("share", [2, 4]),
    ("share", [3, 2]),
    ("share", [1, 128]),
    ("share", [1, 2.0]),
    ("share", [1]),
    ("share", None),
]


@pytest.mark.parametrize(("key", "value"), WRONG_ROWS)
def test_a_row_that_cannot_be_is_refused(tmp_path, key, value):
    damaged(tmp_path / "a", change_config=lambda row: row["samples"][0].update({key: value}))
    with pytest.raises(AdapterError, match="body.0.weight|it has NaN"):
        dts.Adapter.load(tmp_path / "a")


def test_samples_that_are_missing_or_of_wrong_size_are_refused(tmp_path):
    name = "body.0.weight.samples"

    def shorter(rows):
        row = named(rows, name)
        row[3], row[2] = row[3][len(row[3]) // row[2][0] :], [row[2][0] - 1, row[2][1]]

    damaged(tmp_path / "a", change_tensors=lambda rows: rows.remove(named(rows, name)))
    with pytest.raises(AdapterError, match="samples is missing"):
        dts.Adapter.load(tmp_path / "a")
    damaged(tmp_path / "b", change_tensors=shorter)
    with pytest.raises(AdapterError, match="body.0.weight.*codes must be"):
        dts.Adapter.load(tmp_path / "b")


@pytest.mark.parametrize("cut", [False, True])
def test_a_model_computes_what_the_factors_say(cut):
    adapter = compressed().truncate(nbytes=int(0.7 * compressed().nbytes)) if cut else compressed()
    assert {s.share == (1, 1) for name in BASE for f in adapter.entries[name].matrices for s in f.samples} != {cut}
    for name in ("body.0.weight", "body.1.weight"):
        model = torch.nn.Sequential(torch.nn.Linear(BASE[name].shape[1], 96, bias=False))
        model[0].weight.data = BASE[name].clone()
        model = dts.DTSModel(model)
        model.load_task("one", {"0.weight": replace(adapter.entries[name], name="0.weight", base_name="0.weight")})
        x = torch.randn(5, BASE[name].shape[1])
        expected = x.double() @ (BASE[name] + dense(adapter)[name]).double().T
        with torch.inference_mode():
            got = model(x, tasks="one").double()
        assert (got - expected).norm() < 1e-4 * expected.norm()


def test_mixtures_are_exact_and_sized_ones_leave_the_noise_out(tmp_path):
    adapters = {name: compressed(seed, budget=0.05) for name, seed in (("a", 1), ("b", 2))}
    weights = {"a": 0.6, "b": 0.3}
    mixed = dts.unseen.mix(adapters, weights, tmp_path / "m")
    parts = {name: dense(adapter) for name, adapter in adapters.items()}
    for adapter in (mixed, dts.Adapter.load(tmp_path / "m")):
        for name, value in dense(adapter).items():
            torch.testing.assert_close(value, 0.6 * parts["a"][name] + 0.3 * parts["b"][name], rtol=0, atol=1e-5)
    target = {name: 0.6 * tuned(1)[name] + 0.3 * tuned(2)[name] - 0.9 * BASE[name] for name in BASE}
    error = lambda adapter: sum((d - target[n]).square().sum() for n, d in dense(adapter).items())  # noqa: E731
    for base in (None, BASE):
        sized = dts.unseen.mix(adapters, weights, budget=0.05, base=base)
        assert sized.amr <= 0.05 and error(sized) < 0.9 * error(mixed)


@pytest.mark.parametrize("part", [0.9, 0.75])
def test_cut_it_is_about_what_compressing_at_that_size_gives(part, tmp_path):
    adapter, target = compressed(budget=0.1), {name: tuned(1)[name] - BASE[name] for name in BASE}
    limit = int(part * adapter.nbytes)
    error = lambda adapter: sum((d - target[n]).square().sum() for n, d in dense(adapter).items())  # noqa: E731
    small = compressed(budget=0.1, out=tmp_path / "large").truncate(nbytes=limit)
    made = compressed(budget=None, nbytes=limit)
    assert 0.93 * limit < small.nbytes <= limit and small.entries.keys() == made.entries.keys()
    assert any(s.share != (1, 1) for e in small.entries.values() for f in e.matrices for s in f.samples)
    assert error(small) < 1.15 * error(made)
    small.save(tmp_path / "small")
    loaded = dts.Adapter.load(tmp_path / "small")
    assert all(torch.equal(value, dense(small)[name]) for name, value in dense(loaded).items())
    quick = dts.Adapter.load(tmp_path / "large", budget=0.1 * part)
    same = adapter.truncate(budget=0.1 * part, again=False)
    assert quick.nbytes == same.nbytes and quick.amr <= 0.1 * part
    assert all(torch.equal(value, dense(same)[name]) for name, value in dense(quick).items())


def test_cut_far_without_making_them_again_it_is_its_first_components():
    adapter = compressed()
    found = []
    for part in (0.3, 0.35, 0.4, 0.45):
        small = adapter.truncate(nbytes=int(part * adapter.nbytes), again=False)
        for name, entry in small.entries.items():
            for f, whole in zip(entry.matrices, adapter.entries[name].matrices):
                if f is not None and not f.samples:
                    found.append(torch.equal(f.packed.u, whole.low_rank().prefix(f.rank).packed.u))
                    assert f.squared_error == pytest.approx(whole.low_rank().prefix_errors()[f.rank].item(), rel=1e-6)
    assert found and all(found)


def test_a_target_error_is_refused():
    with pytest.raises(ValueError, match="noise larger than the difference"):
        dts.compress(BASE, tuned(1), method="sketch", target_error=0.1)


def test_a_router_knows_a_task_by_the_components():
    name, model = "0.weight", torch.nn.Sequential(torch.nn.Linear(200, 96, bias=False))
    entry = replace(compressed().entries["body.0.weight"], name=name, base_name=name)
    half = replace(entry, factors=entry.factors.low_rank())
    adapters = [SimpleNamespace(method="sketch", entries={name: one}) for one in (entry, half)]
    routers = [EnergyRouter.of(model, {"one": adapter}) for adapter in adapters]
    tables = [router.layers[name].table for router in routers]
    assert torch.equal(*tables) and tables[0].shape[1] == half.factors.rank


@pytest.mark.parametrize("budget", [0.05, 0.055, 0.06, 0.065, 0.07, 0.08])
def test_seeds_of_any_length_keep_the_budget(budget):
    asked, block = budget * 4 * sum(value.numel() for value in BASE.values()), 96 + 200 + 16  # bytes of four components
    assert asked - block - 64 < compressed(budget=budget).nbytes <= asked  # 64: texts are planned at their longest


def moved(share: float, **options) -> dts.Adapter:
    near = {
        name: value + share * value.norm() * delta / delta.norm()
        for (name, value), delta in zip(BASE.items(), (tuned(1)[n] - BASE[n] for n in BASE))
    }
    return dts.compress(BASE, near, **{"budget": 0.06} | options)


def test_by_default_a_near_fine_tune_is_a_sketch_and_a_far_one_is_not():
    assert moved(0.02).method == "sketch" and moved(0.04).method == "residual"
    assert moved(0.02, dry_run=True).method == "sketch" and moved(0.02, method="residual").method == "residual"
    assert moved(0.02, budget=None, target_error=0.5).method == "residual"
    assert moved(0.02, budget=None, rank_fraction=0.3).method == "residual"


def test_an_interrupted_run_is_continued_with_the_same_method(tmp_path):
    def interrupt(done, total, name):
        if done > 0.8 * total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        moved(0.02, out=tmp_path / "a", progress=interrupt)
    resumed = moved(0.02, out=tmp_path / "a", resume=True)
    moved(0.02, out=tmp_path / "b")
    assert resumed.method == "sketch"
    for file in ("dts_config.json", "dts_model.safetensors"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
