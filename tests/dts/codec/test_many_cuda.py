"""Compression on a GPU: `make gpu`."""

import warnings

import pytest
import torch
from matrices import power_law

import dts
from dts.codec import alternations, compress_tensor, many

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True, scope="module")
def device():
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")


def stacked(m, n, count):
    deltas = torch.stack([power_law(m, n, 0.6, seed=i) for i in range(count)])
    return deltas / deltas.abs().amax((1, 2), keepdim=True)


@pytest.mark.parametrize(
    "m, n, ranks", [(384, 384, [60, 50]), (1100, 900, [200]), (300, 700, [7, 7, 7]), (90, 80, [100])]
)
def test_errors_are_those_of_the_cpu(m, n, ranks):
    deltas = stacked(m, n, len(ranks))
    for delta, rank, (packed, error) in zip(deltas, ranks, many.encode(deltas.cuda(), ranks), strict=True):
        assert error == pytest.approx(alternations.encode(delta, rank)[1], rel=0.01)
        assert packed.rank == rank and packed.u.device.type == "cpu"
        left = delta.double() - dts.codec.Factors((packed,), (m, n), None, None, 1.0, None).reconstruct(
            dtype=torch.float64
        )
        assert (left.norm() / delta.double().norm()).square().item() == pytest.approx(error, rel=1e-4)


@pytest.mark.parametrize("method", ["residual", "sketch"])
def test_the_same_bytes_every_time(method):
    delta = power_law(2048, 1024, 0.6)
    first, second = (compress_tensor(delta, method, rank=100, device="cuda") for _ in range(2))
    for ours, theirs in zip(first.stored, second.stored, strict=True):
        for key in ("u", "v", "sigma", "codes"):
            if hasattr(ours, key):
                assert torch.equal(getattr(ours, key), getattr(theirs, key))
    assert first.squared_error == second.squared_error


def test_the_host_waits_a_few_times():
    deltas = stacked(800, 700, 2).cuda()
    many.encode(deltas, [64, 60])
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as waits:
            warnings.simplefilter("always")
            many.encode(deltas, [64, 60])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(waits) <= 8, [str(wait.message) for wait in waits]


def test_a_model_from_disk(tmp_path):
    generator = torch.Generator().manual_seed(0)
    base = {f"l.{i}.weight": torch.randn(512, 256, generator=generator) for i in range(6)}
    tuned = {n: w + 0.01 * torch.randn(w.shape, generator=generator) for n, w in base.items()}
    made = [dts.compress(base, tuned, tmp_path / d, budget=0.02, device="cuda", name="t") for d in "ab"]
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()
    on_cpu = dts.compress(base, tuned, budget=0.02, name="t")
    assert made[0].config["squared_error"] == pytest.approx(on_cpu.config["squared_error"], rel=0.02)
