"""`dts compress --config`."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.dts.cli.said import said

pytest.importorskip("yaml")
ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def recipe(models, tmp_path):
    """Writes ./run.yaml about the tiny models, beside links to them: ``recipe("budget: 40%", entries=...)``."""
    for name in ("base", "one", "two"):
        (tmp_path / name).symlink_to(models / name)

    def write(*lines, entries=("one", "two"), head="base: base\nout: adapters"):
        items = [f"  - {entry}" for entry in entries]
        (tmp_path / "run.yaml").write_text("\n".join([head, *lines, "finetunes:", *items]))
        return tmp_path / "run.yaml"

    return write


def states(result) -> dict[str, str]:
    return {row["name"]: row["state"] for row in json.loads(result.stdout)["finetunes"]}


@pytest.mark.parametrize("jobs", [1, 2])
def test_many_in_one_run_and_again(dts, recipe, tmp_path, jobs, models):
    words = ("compress", "--config", recipe("budget: 40%"), "--jobs", jobs, "--json")
    made = dts(*words)
    assert made.exit_code == 0, made.stderr
    assert states(made) == {"one": "written", "two": "written"}
    alone = dts("compress", models / "base", models / "one", "-o", "alone", "-s", "40%")
    assert alone.exit_code == 0
    name = "dts_model.safetensors"
    assert (tmp_path / "alone" / name).read_bytes() == (tmp_path / "adapters" / "one" / name).read_bytes()
    before = (tmp_path / "adapters" / "one" / name).stat().st_mtime_ns
    assert states(dts(*words)) == {"one": "there already", "two": "there already"}
    assert (tmp_path / "adapters" / "one" / name).stat().st_mtime_ns == before


def test_one_failure_does_not_stop_the_rest(dts, recipe, tmp_path, models):
    (tmp_path / "cut.safetensors").write_bytes((models / "one" / "model.safetensors").read_bytes()[:-9])
    file = recipe("budget: 40%", entries=("none", "{path: one, name: first}", "cut.safetensors", "two"))
    for jobs in (2, 1):
        done = dts("compress", "--config", file, "--jobs", jobs, "--json")
        rows = {row["name"]: row for row in json.loads(done.stdout)["finetunes"]}
        assert done.exit_code == 1 and [rows[name]["state"] for name in ("none", "cut")] == ["failed"] * 2
        assert "none" in rows["none"]["reason"] and "traceback" not in rows["none"]
        assert rows["first"]["state"] == rows["two"]["state"] == ("written" if jobs == 2 else "there already")
    shown = dts("compress", "--config", file)
    assert shown.exit_code == 1 and "none failed:" in shown.stdout and "2 of 4 failed" in shown.stdout
    assert "Traceback" not in shown.stderr
    assert "Traceback" in dts("compress", "--config", file, "--debug").stderr


def test_an_adapter_of_something_else_is_not_taken_for_it(dts, recipe, tmp_path):
    file = recipe("budget: 40%")
    assert dts("compress", "--config", file).exit_code == 0
    file = recipe("budget: 40%", entries=("one", "{path: two, budget: 50%}"))
    other = dts("compress", "--config", file, "--json")
    rows = {row["name"]: row for row in json.loads(other.stdout)["finetunes"]}
    assert other.exit_code == 1 and rows["one"]["state"] == "there already"
    assert rows["two"]["state"] == "failed" and "--overwrite" in rows["two"]["reason"]
    done = dts("compress", "--config", file, "--overwrite", "--json")
    assert states(done) == {"one": "there already", "two": "written"}
    # by hand, with other weights in it: no longer what this file makes
    assert dts("compress", "base", "two", "-o", "adapters/one", "-s", "40%", "--overwrite").exit_code == 0
    assert states(dts("compress", "--config", file, "--json"))["one"] == "failed"


def test_sizes_and_names_of_each(dts, recipe, tmp_path):
    entries = ("{path: one, rank_fraction: 30%, class_names: [a, b, c], description: says}", "{path: two, name: other}")
    done = dts("compress", "--config", recipe("budget: 40%", "method: paper", entries=entries), "--json", "--dry-run")
    assert done.exit_code == 0 and states(done) == {"one": "predicted", "other": "predicted"}
    assert not (tmp_path / "adapters").exists()
    done = dts("compress", "--config", tmp_path / "run.yaml", "--out", "elsewhere", "--json")
    rows = {row["name"]: row for row in json.loads(done.stdout)["finetunes"]}
    assert rows["one"]["class_names"] == ["a", "b", "c"] and rows["one"]["description"] == "says"
    assert {row["method"] for row in rows.values()} == {"paper"}
    inspected = json.loads(dts("inspect", "elsewhere/one", "--json").stdout)
    assert {row["rank"] for row in inspected["tensors"] if row["name"].startswith("layer.0.w")} == {19}  # .3 of 64


def test_all_that_is_wrong_is_said_at_once_with_the_nearest_word(dts, recipe, tmp_path):
    file = recipe(
        "bugdet: 1%", "method: papper", entries=("{paht: one}", "{path: two, budget: 5, rank_fraction: 0.1}", "7")
    )
    wrong = dts("compress", "--config", file)
    text = said(wrong)
    assert wrong.exit_code == 2 and not (tmp_path / "adapters").exists()
    for words in (
        "bugdet: not known; did you mean budget?",
        "method: one of",
        "did you mean paper?",
        "finetunes, item 1: paht: not known; did you mean path?",
        "finetunes, item 1: path: missing",
        "item 2: budget and rank_fraction say the size twice",
        "item 2: budget: size '5' has no unit",
        "item 3: a path, or names with values",
    ):
        assert words in text, words
    (tmp_path / "run.yaml").write_text("finetunes: []")
    text = said(dts("compress", "--config", "run.yaml"))
    assert all(f"{key}: missing" in text for key in ("base", "out", "finetunes"))
    assert "several are named one" in said(
        dts("compress", "--config", recipe(entries=("one", "{path: two, name: one}")))
    )
    assert "cannot be a folder's name" in said(
        dts("compress", "--config", recipe(entries=("{path: one, name: ../x}",)))
    )


def test_where_it_is_computed_and_which_part_are_said_in_the_file(dts, recipe, models, tmp_path):
    made = dts("compress", "--config", recipe("budget: 40%", "device: cpu", entries=("one",)), "--json")
    assert made.exit_code == 0 and states(made) == {"one": "written"}, made.stderr
    alone = dts("compress", models / "base", models / "one", "-o", "alone", "-s", "40%")
    name = "dts_model.safetensors"
    assert alone.exit_code == 0
    assert (tmp_path / "alone" / name).read_bytes() == (tmp_path / "adapters/one" / name).read_bytes()
    text = said(
        dts(
            "compress",
            "--config",
            recipe(
                "device: cuda:99",
                entries=("{path: one, device: 3, vocabulary: all}", "{path: two, only: [x], state: s}"),
            ),
        )
    )
    for words in (
        "device 'cuda:99': PyTorch finds none here",
        "item 1: device: a word, as --device takes it, not 3",
        "item 1: vocabulary must be 'shared'",
        "item 2: only: a word",
        "item 2: state: --state s is of a .pt or .bin file",
    ):
        assert words in text, (words, text)


def test_what_the_base_is_is_said_once_for_all(dts, recipe):
    """tests/quantised follows a file that says so of a real one."""
    plain = dts("compress", "--config", recipe("budget: 40%", "base_is: quantised"))
    assert plain.exit_code == 2 and "is not quantised: leave base_is (--base-is) out" in said(plain)
    assert dts("compress", "--config", recipe("budget: 40%", "base_is: plain", entries=("one",))).exit_code == 0
    of_one = recipe("base_is: int4", "method: [auto]", entries=("{path: one, base_is: quantised}",))
    text = said(dts("compress", "--config", of_one))
    for words in (
        "base_is: one of plain, quantised, not 'int4'",
        "method: one of",
        "finetunes, item 1: base_is: of the base, so of all fine-tunes: say it beside base",
    ):
        assert words in text, (words, text)


def test_files_that_cannot_be_read_and_words_that_do_not_go_together(dts, recipe, tmp_path, monkeypatch):
    assert "there is no file none.yaml" in said(dts("compress", "--config", "none.yaml"))
    (tmp_path / "bad.yaml").write_text("a: [")
    assert "is no YAML" in said(dts("compress", "--config", "bad.yaml"))
    (tmp_path / "bad.yaml").write_text("- one")
    assert "finetunes:" in said(dts("compress", "--config", "bad.yaml"))  # an example
    wrong = dts("compress", "base", "one", "--config", recipe(), "-s", "2%", "-m", "auto")
    assert wrong.exit_code == 2 and "move BASE, FINETUNED, --budget, --method into the file" in said(wrong)
    assert "--jobs goes with --config" in said(dts("compress", "base", "one", "-o", "a", "--jobs", "2"))
    assert "BASE and FINE-TUNES and --out missing" in said(dts("compress"))
    monkeypatch.setitem(sys.modules, "yaml", None)
    assert "pip install pyyaml" in said(dts("compress", "--config", recipe()))


def test_methods_are_those_that_are_registered(dts):
    from dts.codec.methods import CHOICES

    rows = json.loads(dts("compress", "--methods", "--json").stdout)
    assert [row["name"] for row in rows] == list(CHOICES) and all(row["about"] for row in rows)
    shown = dts("compress", "--methods").stdout
    assert all(name in shown for name in CHOICES)


def test_a_process_that_dies_takes_no_other_with_it(monkeypatch, recipe, tmp_path):
    from dts.cli import many
    from dts.cli.recipe import read_recipe

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(many, "_child", _dies_of_one)
    rows = many.run(read_recipe(recipe("budget: 40%")), jobs=2)
    assert [row["state"] for row in rows] == ["failed", "written"]
    assert "signal 9" in rows[0]["reason"] and "memory" in rows[0]["reason"]


def _dies_of_one(pipe, job, *rest):
    from dts.cli.many import _child

    if job.name == "one":
        os.kill(os.getpid(), signal.SIGKILL)
    _child(pipe, job, *rest)


def test_a_run_that_was_killed_goes_on(dts, recipe, tmp_path):
    """Killed where the first adapter is whole and not noted yet: it is taken as it is."""
    file = recipe("budget: 40%")
    child = subprocess.Popen([sys.executable, "-m", "dts", "compress", "--config", file], cwd=ROOT)
    until = time.monotonic() + 60
    while not (tmp_path / "adapters" / "one").exists() and time.monotonic() < until:
        time.sleep(0.005)
    child.kill()
    child.wait()
    assert set(states(dts("compress", "--config", file, "--json")).values()) <= {"written", "there already"}
    notes = tmp_path / "adapters" / ".dts-compress.json"
    found = json.loads(notes.read_text())
    found["one"]["sha256"] = None
    notes.write_text(json.dumps(found))
    assert states(dts("compress", "--config", file, "--json")) == {"one": "there already", "two": "there already"}


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="looks for a process's children in /proc")
def test_ctrl_c_is_one_word_of_all_processes(recipe, tmp_path):
    """It goes to all of a terminal's: those that were importing PyTorch each ended in a traceback."""
    words = [sys.executable, "-m", "dts", "compress", "--config", recipe("budget: 40%"), "--jobs", "2"]
    child = subprocess.Popen(
        words,
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background has it ignored
    )
    children = Path(f"/proc/{child.pid}/task/{child.pid}/children")
    until = time.monotonic() + 120
    while len(children.read_text().split()) < 3 and time.monotonic() < until:  # one of them multiprocessing's own
        time.sleep(0.002)
    os.killpg(child.pid, signal.SIGINT)
    said = child.communicate(timeout=120)[1]
    assert child.returncode == 130 and "Interrupted" in said and "Traceback" not in said, said
    assert not (tmp_path / "adapters" / "one").exists()


def test_ray_that_is_not_installed_is_asked_for_by_its_extra(dts, recipe, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "ray", None)
    for words in (("--ray",), ("--ray-address", "auto")):
        done = dts("compress", "--config", recipe(), *words)
        assert done.exit_code == 2 and "pip install 'dts-merge[ray]'" in said(done)
    assert not (tmp_path / "adapters").exists()


def test_what_a_cluster_writes_where_this_machine_does_not_read_is_no_success(recipe, monkeypatch):
    """And places are told from the root on; what Ray itself says is a reason in one line."""
    from dts.cli import many
    from dts.cli.recipe import read_recipe
    from dts.ray import tasks
    from dts.ray.cluster import Cluster

    asked = []

    def run(function, calls, cluster, told, finished, say):
        asked.extend(job for job, *_ in calls.values())
        finished("one", {"name": "one", "state": "written", "reason": None}, None)
        finished("two", None, RuntimeError("\n the worker died \n and much more"))

    monkeypatch.setattr(tasks, "run", run)
    file = recipe("budget: 40%")
    monkeypatch.chdir(file.parent)
    rows = many.run(read_recipe(Path("run.yaml")), cluster=Cluster())
    assert [row["state"] for row in rows] == ["failed", "failed"]
    assert "cannot be read here" in rows[0]["reason"] and rows[1]["reason"].endswith("RuntimeError: the worker died")
    assert all(Path(job.source).is_absolute() and job.folder.is_absolute() for job in asked)
