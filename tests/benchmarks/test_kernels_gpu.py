"""The GPU benchmark's plumbing, on the CPU: tiny shapes through the reference, made-up times."""

import json

import pytest
import torch

from benchmarks.kernels import gpu
from benchmarks.kernels.gpu import Case


def fake_timer(runs):
    for run in runs:
        run()
    return [1.0, 2.0, 3.0]


@pytest.mark.parametrize("workload", gpu.WORKLOADS)
def test_every_method_of_a_case_is_timed_after_its_result_is_checked(workload):
    torch.manual_seed(0)
    case = Case(64, 48, 0.3, 8, workload)
    results = gpu.measure(case, "cpu", fake_timer)
    names = [r.method for r in results]
    assert names[:3] == ["base alone", "packed", "sketch, equal bytes"] and len(names) == 7
    assert 2 <= gpu.layer_count(case) <= 12
    assert [r.error is not None for r in results] == [n in ("packed", "sketch, equal bytes") for n in names]
    assert all(r.median_us == 2000 and r.p10_us == 1000 and r.p90_us == 3000 for r in results)
    rows = gpu.rows_of_table(results, copy=1e9)
    assert {r["ratio_to_base"] for r in rows} == {1.0}
    assert rows[0]["share_of_copy"] == pytest.approx(2 * 64 * 48 / 2e-3 / 1e9)


def test_a_wrong_product_gets_no_time(monkeypatch):
    monkeypatch.setattr(gpu.kernels, "linear", lambda x, weight, *rest: x @ weight.T * 2)
    with pytest.raises(AssertionError, match="packed is wrong"):
        gpu.measure(Case(32, 32, 0.3, 2, "one"), "cpu", fake_timer)


def test_workloads_name_a_task_a_row():
    assert Case(8, 8, 1, 5, "distinct").entries == [0, 1, 2, 3, 4] and Case(8, 8, 1, 5, "one").entries == [0]
    zipf, uniform = (Case(8, 8, 1, 64, w).entries for w in ("zipf", "uniform"))
    assert len(zipf) == len(uniform) == 64 and zipf.count(0) > uniform.count(0)


def test_the_cases_of_the_targets_come_first():
    first = gpu.cases()[:6]
    assert {(c.rows, c.workload, c.rank_fraction) for c in first} == {
        (1, "one", 0.3),
        (16, "one", 0.3),
        (16, "distinct", 0.3),
        (64, "distinct", 0.3),
        (4096, "one", 0.3),
        (1, "one", 0.05),
    }
    assert len(gpu.cases()) == len(set(gpu.cases()))


def test_plot_is_drawn(tmp_path):
    results = gpu.measure(Case(64, 48, 0.3, 2, "one"), "cpu", fake_timer)
    rows = [r | {"out_features": 4096, "in_features": 4096} for r in gpu.rows_of_table(results, 1e9)]
    gpu.plot(rows, tmp_path / "kernels.png")
    assert (tmp_path / "kernels.png").stat().st_size > 1000


def test_a_rehearsal_of_all_that_a_card_is_lent_for(tmp_path, monkeypatch, capsys):
    cases = [Case(4096, 32, 0.3, 1, "one"), Case(64, 48, 0.3, 8, "distinct"), Case(48, 64, 0.1, 64, "zipf")]
    monkeypatch.setattr(gpu, "cases", lambda: cases)
    monkeypatch.setattr(gpu, "COLD", 1 << 16)
    assert gpu.main(["--seconds", "600", "--out", str(tmp_path)], "cpu", fake_timer) == 0
    found = json.loads((tmp_path / "rehearsal-on-cpu" / "kernels.json").read_text())
    assert not found["not_measured"] and {row["rows"] for row in found["rows"]} == {1, 8, 64}
    assert (tmp_path / "rehearsal-on-cpu" / "kernels.png").stat().st_size > 1000
    assert gpu.main(["--seconds", "-1", "--out", str(tmp_path)], "cpu", fake_timer) == 0
    found = json.loads((tmp_path / "rehearsal-on-cpu" / "kernels.json").read_text())
    assert len(found["not_measured"]) == 3 and not found["rows"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_nothing_is_measured(capsys):
    assert gpu.main([]) == 1
    assert "not measured" in capsys.readouterr().err
