"""The whole-model benchmark's plumbing, on the CPU: a tiny Llama, made-up times."""

import time

import pytest
import torch

from benchmarks.kernels import gpu_model
from benchmarks.kernels.gpu_model import Clock, Report, Size

pytest.importorskip("transformers")
TINY = Size(hidden=64, layers=1, inner=96, heads=4, shared=2, words=50, batches=(1, 3), prompts=(7,))


def clock():
    def once(run):
        run()
        return [2.0]

    return Clock(once, lambda runs: once(runs[0]), lambda: 0)


def test_every_case_is_checked_and_timed(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_model, "KINDS", [("components", 0.05), ("sketch", 0.05)])
    report = Report(tmp_path, "a card", time.monotonic() + 600)
    gpu_model.run(TINY, "cpu", report, clock())
    timed = [row for row in report.rows if "ratio" in row and row["what"] != "base"]
    for kind in ("components", "sketch"):
        own = [(r["what"], r["mode"], r["batch"], r["tokens"]) for r in timed if r.get("kind") == kind]
        one = [("one task", mode, *size) for size in ((1, 1), (3, 1), (1, 7)) for mode in ("eager", "captured")]
        assert set(own) == {*one, ("a task a row", "eager", 3, 1), ("a task a row", "captured", 3, 1)}
    assert all(row["ratio"] == 1 for row in timed)
    assert {row["what"] for row in report.rows} >= {"load", "switch"}
    gpu_model.plot(report.rows, tmp_path / "model.png")
    assert (tmp_path / "model.json").stat().st_size > 500 and (tmp_path / "model.png").stat().st_size > 1000


def test_what_cannot_be_captured_is_said():
    def refuse(runs):
        raise RuntimeError("operation not permitted when stream is capturing")

    report = Report(None, "a card", 0)
    report.time("base", lambda: None, Clock(lambda run: [1.0], refuse, lambda: 0), batch=1, tokens=1)
    assert [row["ms"] for row in report.rows] == [1.0, None] and "capturing" in report.rows[1]["failed"]
    assert report.late("more") and report.left_out == ["more"]


def test_ranks_take_the_bytes_asked_for():
    model = gpu_model.llama(TINY, "cpu")
    made = gpu_model.task(model, "components", 0.05, 0, "cpu")
    taken = sum(entry.factors.nbytes for entry in made.values())
    assert taken == pytest.approx(0.05 * 4 * sum(p.numel() for p in model.parameters()), rel=0.15)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_nothing_is_measured(capsys):
    assert gpu_model.main([]) == 1
    assert "not measured" in capsys.readouterr().err
