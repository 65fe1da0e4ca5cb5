"""Time of whole adapters: ``OMP_NUM_THREADS=2 python -m pytest benchmarks/test_adapter.py --benchmark-enable``."""

import pytest
import torch

import dts
from dts.adapter import write_checkpoint
from dts.checkpoint import write_safetensors
from dts.checkpoint.safetensors_file import layout_of

LAYERS, WIDTH = 2, 384


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Two layers of MiniLM's shapes, and a fine-tune of them: (base file, fine-tune file)."""
    folder, generator = tmp_path_factory.mktemp("models"), torch.Generator().manual_seed(0)
    shapes = {
        f"layer.{i}.{name}.weight": shape
        for i in range(LAYERS)
        for name, shape in (
            ("query", (WIDTH, WIDTH)),
            ("key", (WIDTH, WIDTH)),
            ("value", (WIDTH, WIDTH)),
            ("output", (WIDTH, WIDTH)),
            ("up", (4 * WIDTH, WIDTH)),
            ("down", (WIDTH, 4 * WIDTH)),
        )
    }
    base = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    tuned = {}
    for name, (m, n) in shapes.items():
        rank = min(m, n)
        left, right = torch.randn(m, rank, generator=generator), torch.randn(rank, n, generator=generator)
        tuned[name] = base[name] + 1e-3 * (left * torch.arange(1, rank + 1).float() ** -0.6) @ right
    for name, state in (("base", base), ("tuned", tuned)):
        write_safetensors(folder / f"{name}.safetensors", layout_of(state.items()), state.__getitem__)
    return folder / "base.safetensors", folder / "tuned.safetensors"


@pytest.fixture(scope="module")
def folder(models, tmp_path_factory):
    return dts.compress(*models, out=tmp_path_factory.mktemp("adapters") / "a", budget=0.01).folder


@pytest.mark.parametrize("method", ["residual", "paper"])
def test_compress_to_a_budget(benchmark, models, method):
    adapter = benchmark.pedantic(dts.compress, args=models, kwargs={"budget": 0.01, "method": method}, rounds=2)
    benchmark.extra_info |= {"bytes": adapter.nbytes, "squared_error": adapter.config["squared_error"]}
    assert adapter.amr <= 0.01


def test_dry_run(benchmark, models):
    adapter = benchmark.pedantic(dts.compress, args=models, kwargs={"budget": 0.01, "dry_run": True}, rounds=2)
    assert adapter.amr <= 0.01


def test_load(benchmark, folder):
    assert benchmark(dts.Adapter.load, folder).nbytes


def test_load_a_prefix(benchmark, folder):
    assert benchmark(dts.Adapter.load, folder, budget=0.005).amr <= 0.005


def test_verify_digests(benchmark, folder, models):
    assert benchmark(dts.Adapter.load(folder).verify, models[0]).ok


def test_write_the_full_checkpoint(benchmark, folder, models, tmp_path):
    adapter = dts.Adapter.load(folder)
    out = benchmark(write_checkpoint, models[0], adapter, tmp_path / "full", overwrite=True)
    assert (out / "model.safetensors").is_file()
