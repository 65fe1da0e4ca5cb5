"""The command that all suites share, on a suite of one linear model."""

import argparse
import dataclasses
import importlib
import json

import pytest
import torch

from benchmarks.quality import command
from benchmarks.quality.suite import Classifier
from dts.demo.tasks import MissingData


@pytest.fixture
def suite(tmp_path, monkeypatch):
    monkeypatch.setattr(command, "CACHE", tmp_path)
    inputs = torch.randn(60, 24, generator=torch.Generator().manual_seed(0))
    asked = []

    def finetunes(names, seeds):
        asked.append((names, seeds))
        return [(name, seed, f"{name}-{seed}") for seed in seeds for name in names]

    def subject(task, seed, folder, samples):
        deltas = {"w": torch.randn(32, 24, generator=torch.Generator().manual_seed(seed))}
        forward = lambda deltas: inputs[:samples] @ deltas["w"].T  # noqa: E731
        return Classifier(task, seed, folder, deltas, forward, forward(deltas).argmax(-1))

    made = command.Suite(
        "linear",
        ["a", "b"],
        "abc",
        finetunes,
        subject,
        methods=["residual", "bitdelta"],
        sizes=[0.2],
        quick_tasks=["c"],
        quick_samples=20,
        check=lambda subjects: len(subjects) == 1,
        check_tasks=["a"],
    )
    made.finetunes.asked = asked
    return made


@pytest.fixture
def reported(monkeypatch):
    """What goes to the report: (folder, suite's name, rows) a run.  Its plots are tested with it."""
    calls = []
    monkeypatch.setattr(command.report, "write", lambda out, name, cells, rows: calls.append((out, name, rows)))
    return calls


def test_the_defaults_and_quick(suite, reported, tmp_path):
    assert command.run(suite, "", []) == 0
    assert command.run(suite, "", ["--quick", "--out", "elsewhere"]) == 0
    (out, name, rows), (elsewhere, _, quick) = reported
    assert (out, name, str(elsewhere)) == (tmp_path / "report", "linear", "elsewhere")
    assert [(r["method"], r["task"], r["size"]) for r in rows] == [
        ("residual", "a", 0.2),
        ("residual", "b", 0.2),
        ("bitdelta", "a", None),
        ("bitdelta", "b", None),
    ]
    assert {r["task"] for r in quick} == {"c"} and {r["size"] for r in quick} == set(suite.quick_sizes)
    assert (tmp_path / "linear.jsonl").is_file()


def test_options_go_where_they_belong(suite, reported):
    arguments = "--tasks b,c --seeds 1,2 --draws 0,1 --methods residual --sizes 0.1,0.3".split()
    assert command.run(suite, "", arguments) == 0
    assert suite.finetunes.asked == [(["b", "c"], [1, 2])]
    rows = reported[0][2]
    assert len(rows) == 2 * 2 * 2 * 2 and {r["size"] for r in rows} == {0.1, 0.3}


def test_samples_are_as_many_as_asked_for(suite, reported, capsys):
    for arguments, count in (["--samples", "50"], 50), (["--quick"], 20), (["--quick", "--samples", "50"], 50):
        assert command.run(suite, "", [*arguments, "--methods", "bitdelta"]) == 0
        assert {json.loads(row["key"])[5] for row in reported[-1][2]} == {count}
    for wrong in "0", "-5", "many":
        with pytest.raises(SystemExit) as stopped:
            command.run(suite, "", [f"--samples={wrong}"])
        assert stopped.value.code == 2 and "argument --samples: " in capsys.readouterr().err


def test_exit_codes(suite, capsys):
    assert command.run(suite, "", ["--finetune"]) == 0
    assert command.run(suite, "", ["--check"]) == 0
    assert command.run(suite, "", ["--check", "--tasks", "a,b"]) == 1
    for wrong, words in (["--tasks=z", "no task z; there are a, b, c"], ["--methods=z", "no method z"]):
        with pytest.raises(SystemExit) as stopped:
            command.run(suite, "", [wrong])
        assert stopped.value.code == 2 and words in capsys.readouterr().err


def test_what_is_missing_is_said(suite, capsys):
    def finetunes(names, seeds):
        raise MissingData("run: pip install something")

    assert command.run(dataclasses.replace(suite, finetunes=finetunes), "", []) == 2
    assert "linear: run: pip install something" in capsys.readouterr().err


def test_the_place_of_a_file_is_made_before_the_work(tmp_path):
    parser = argparse.ArgumentParser()
    command.make_place(parser, tmp_path / "new" / "deep" / "rows.json")
    assert list((tmp_path / "new" / "deep").iterdir()) == []
    command.make_place(parser, None)


@pytest.mark.parametrize("name", ["routing", "quantised", "theory", "merging.__main__"])
def test_a_place_that_cannot_be_is_refused_before_the_work(name, tmp_path, capsys):
    (tmp_path / "file").touch()
    module = importlib.import_module(f"benchmarks.quality.{name}")
    for out, said in (
        (tmp_path, "is a folder: name a file in it"),
        (tmp_path / "file" / "rows", "a part of its path is a file"),
    ):
        with pytest.raises(SystemExit) as stopped:
            module.main([*(["fine-tune"] if name == "theory" else []), "--out", str(out)])
        assert stopped.value.code == 2 and said in capsys.readouterr().err
