"""The whole-model benchmark's plumbing, on the CPU: a tiny Llama, made-up times."""

import json
import time
import warnings

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

    return Clock(once, lambda runs: once(runs[0]), once, lambda run: (run, run()), lambda: 0)


def test_every_case_is_checked_and_timed(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_model, "KINDS", [("components", 0.05), ("sketch", 0.05)])
    report = Report(tmp_path, "a card", time.monotonic() + 600)
    gpu_model.run(TINY, "cpu", report, clock())
    timed = [row for row in report.rows if "ratio" in row and row["what"] != "base"]
    mixed = {row["kind"] for row in timed if row["what"] == "a task a row"}
    assert len(mixed) >= 5 and "dense models" in mixed and sum("grouped LoRA" in kind for kind in mixed) == 2
    assert not report.failed
    for kind in ("components", "sketch"):
        own = [(r["what"], r["mode"], r["batch"], r["tokens"]) for r in timed if r.get("kind") == kind]
        one = [("one task", mode, *size) for size in ((1, 1), (3, 1), (1, 7)) for mode in ("eager", "captured")]
        rows = [("a task a row", mode, 3, 1) for mode in ("eager", "captured")]
        steps = [(what, "captured", n, 1) for what in ("captured step", "shared inputs") for n in (1, 3)]
        assert len(own) == len(set(own)) and set(own) == {*one, *rows, *steps}
    assert all(row["ratio"] == 1 for row in timed)
    assert {row["what"] for row in report.rows} >= {"load", "switch"}
    gpu_model.plot(report.rows, tmp_path / "model.png")
    assert (tmp_path / "model.json").stat().st_size > 500 and (tmp_path / "model.png").stat().st_size > 1000


def test_a_rehearsal_of_all_that_a_card_is_lent_for(tmp_path, capsys):
    arguments = ["--seconds", "600", "--out", str(tmp_path)]
    assert gpu_model.main(arguments, "cpu", clock(), TINY) == 0
    found = json.loads((tmp_path / "rehearsal-on-cpu" / "model.json").read_text())
    assert not [one for one in found["not_measured"] if "peft" not in one]
    assert {(row["kind"], row["budget"]) for row in found["rows"] if row["what"] == "load"} == set(gpu_model.KINDS)
    assert (tmp_path / "rehearsal-on-cpu" / "model.png").stat().st_size > 1000


def test_one_that_fails_costs_no_other_measurement(monkeypatch, capsys):
    real = gpu_model.of_kind

    def wrong(model, kind, *rest):
        if kind == "components":
            raise AssertionError("row 0 differs")
        real(model, kind, *rest)

    monkeypatch.setattr(gpu_model, "of_kind", wrong)
    monkeypatch.setattr(gpu_model, "KINDS", [("components", 0.05), ("sketch", 0.05)])
    report = Report(None, "a card", time.monotonic() + 600)
    gpu_model.run(TINY, "cpu", report, clock())
    assert report.failed == ["components at 5.0%: row 0 differs"] and "row 0 differs" in capsys.readouterr().err
    assert "sketch" in {row.get("kind") for row in report.rows}


@pytest.mark.parametrize("batch", [3, 8, 32])
def test_grouped_products_are_those_of_each_rows_task(batch):
    a, b = torch.randn(8, 5, 2, dtype=torch.float64), torch.randn(8, 2, 7, dtype=torch.float64)
    x = torch.randn(batch, 4, 5, dtype=torch.float64)
    wanted = torch.stack([x[i] @ a[i % 8] @ b[i % 8] for i in range(batch)])
    torch.testing.assert_close(gpu_model.in_groups(x, a, b), wanted)


def test_what_cannot_be_captured_is_said():
    def refuse(runs):
        raise RuntimeError("operation not permitted when stream is capturing")

    report = Report(None, "a card", 0)
    report.time("base", lambda: None, Clock(lambda run: [1.0], refuse), batch=1, tokens=1)
    assert [row["ms"] for row in report.rows] == [1.0, None] and "capturing" in report.rows[1]["failed"]
    assert report.late("more") and report.left_out == ["more"]


def test_a_graph_that_cannot_be_captured_or_shares_less_is_said():
    class Model:
        def capture(self, record, share_inputs, **given):
            if not share_inputs:
                raise RuntimeError("no room")
            warnings.warn("1 of 2 groups keep a launch each", stacklevel=2)
            return lambda **given: None

    report = Report(None, "a card", 0)
    ids = torch.zeros(2, 1, dtype=torch.int64)
    gpu_model.of_shared(Model(), ids, report, clock(), batch=2, tokens=1)
    alone, shared = report.rows
    assert alone["failed"] == "no room" and alone["ms"] is None
    assert shared["said"] == ["1 of 2 groups keep a launch each"] and shared["ms"] == 2


def test_ranks_take_the_bytes_asked_for():
    model = gpu_model.llama(TINY, "cpu")
    made = gpu_model.task(model, "components", 0.05, 0, "cpu")
    taken = sum(entry.factors.nbytes for entry in made.values())
    assert taken == pytest.approx(0.05 * 4 * sum(p.numel() for p in model.parameters()), rel=0.15)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_nothing_is_measured(capsys):
    assert gpu_model.main([]) == 1
    assert "not measured" in capsys.readouterr().err
