"""The measuring loop and the report, on a linear model."""

import pytest
import torch

from benchmarks.quality import suite


@pytest.fixture
def subjects():
    generator = torch.Generator().manual_seed(0)
    inputs, base = (torch.randn(size, 24, generator=generator) for size in (50, 32))

    def subject(task: str) -> suite.Subject:
        deltas, head = {"w": torch.randn(32, 24, generator=generator)}, torch.randn(32, 5, generator=generator)
        forward = lambda deltas: inputs @ (base + deltas["w"]).T @ head  # noqa: E731
        labels = forward(deltas).argmax(-1)
        labels[:10] = 0
        return suite.Classifier(task, 0, f"{task}-fine-tune", deltas, forward, labels)

    return [subject("one"), subject("two")]


METHODS = ["residual", "dts paper", "bitdelta", "emr"]


def test_rows_hold_what_was_measured(subjects, tmp_path):
    rows = suite.measure("text", subjects, tmp_path / "rows.jsonl", METHODS, [0.1, 0.3])
    assert [(row["method"], row["size"], row["task"]) for row in rows] == [
        (method, size, task)
        for method in METHODS
        for size in ([0.1, 0.3] if method in ("residual", "dts paper") else [None])
        for task in ("one", "two")
    ]
    for row in rows:
        if row["size"]:
            assert 0 < row["share"] <= row["size"]
        assert row["kl"] > 0 and 0 <= row["agreement"] <= 1
        assert row["adr"] == pytest.approx(1 - row["accuracy"] / row["finetuned_accuracy"])


def test_a_second_run_measures_nothing_and_a_changed_fine_tune_is_measured_again(subjects, tmp_path, monkeypatch):
    path = tmp_path / "rows.jsonl"
    first = suite.measure("text", subjects, path, METHODS, [0.1])
    calls = []
    monkeypatch.setattr(suite, "_row", lambda subject, encoded: calls.append(subject.identity) or {"kl": 0.0})
    monkeypatch.setattr(suite, "_tell", lambda rows: None)
    assert suite.measure("text", subjects, path, METHODS, [0.1]) == first and not calls
    subjects[1].identity = "changed"
    suite.measure("text", subjects, path, METHODS, [0.1])
    assert calls.count("changed") == len(METHODS)
    assert calls.count("one-fine-tune") == 1  # emr: what it stores of one task depends on the other


def test_the_whole_delta_scores_perfectly(subjects):
    for subject in subjects:
        row = suite._row(subject, suite.Encoded(subject.deltas, 32 * 32 * 24, 0))
        assert (row["share"], row["kl"], row["agreement"], row["adr"], row["squared_error"]) == (1, 0, 1, 0, 0)


def test_summary_takes_means_and_the_worst():
    row = dict.fromkeys(suite.MEANS, 0.0) | {"suite": "s", "method": "m", "size": 0.1, "seed": 0, "draw": 0}
    cells = suite.summary([row | {"kl": 1.0, "adr": 0.2}, row | {"kl": 3.0, "adr": 0.0}, row | {"kl": 6.0, "seed": 1}])
    assert len(cells) == 1
    assert (cells[0]["kl"], cells[0]["worst_kl"], cells[0]["worst_adr"], cells[0]["runs"]) == (10 / 3, 6.0, 0.2, 3)
    assert cells[0]["kl_deviation"] == pytest.approx(8**0.5)  # of 2 and 6


@pytest.mark.parametrize("fraction", [0.02, 0.1, 0.3])
def test_uniform_ranks_use_the_bytes(fraction):
    deltas = {"a": torch.zeros(384, 384), "b": torch.zeros(1536, 384)}
    ranks = suite._uniform_ranks(deltas, fraction)
    nbytes = sum(-(-k // 4) * sum(deltas[name].shape) + 4 * k for name, k in ranks.items())
    allowed = fraction * 4 * sum(delta.numel() for delta in deltas.values())
    assert 0.85 * allowed < nbytes <= allowed
