"""Killed at any moment, a run leaves the old folder or the new one whole, and the next run succeeds."""

import itertools
import os
import random
import signal
import subprocess
import sys
import time

import pytest

from dts.files import place

from . import conftest as faults

CASES = [
    (verb, state) for verb in faults.VERBS for state in ("absent", "empty", "old") if (verb, state) != ("merge", "old")
]


def prepared(verb, state, models, folder):
    out = folder / "out"
    if state == "empty":
        out.mkdir()
    if state == "old":
        faults.job(verb, models, out, "2")()
    return out


def every_kill_point(verb, state, models, tmp_path, step=1, setup=None) -> int:
    """Kills before every step-th change, looks, runs again, looks; returns how many points there were."""
    log = tmp_path / "log"
    faults.job(verb, models, tmp_path / "out", "1")()  # under the same name: a card has the folder's
    new = faults.content(tmp_path / "out")
    for n in itertools.count(1, step):
        folder = tmp_path / f"{n}"
        folder.mkdir()
        out = prepared(verb, state, models, folder)
        old = faults.content(out)

        def prepare(n=n):
            if setup:
                setup()
            faults.killed_at(n)()

        code = faults.run(faults.job(verb, models, out, "1", overwrite=state == "old"), log, prepare)
        assert code in (faults.KILLED, faults.DONE), faults.log_of(log)
        found = faults.content(out)
        if setup is None or found is not None:
            assert found in (old, new), f"killed before change {n}: {found and sorted(found)}"
        if code == faults.DONE:
            assert found == new and [path.name for path in folder.iterdir()] == ["out"]
            return n
        faults.tried[f"kill points of {verb}"] += 1
        if verb == "merge" and found == new:
            continue
        code = faults.run(faults.job(verb, models, out, "1", overwrite=True), log, setup)
        assert code == faults.DONE, f"after change {n}: {faults.log_of(log)}"
        assert faults.content(out) == new
        left = [path.name for path in folder.iterdir() if path.name != "out"]
        assert not left, f"killed before change {n}: {left} is left"


@pytest.mark.faults
@pytest.mark.parametrize(("verb", "state"), CASES)
def test_before_every_change(verb, state, models, tmp_path):
    assert every_kill_point(verb, state, models, tmp_path) > 8


def test_before_some_changes(models, tmp_path):
    assert every_kill_point("save", "old", models, tmp_path, step=4) > 8


@pytest.mark.faults
@pytest.mark.parametrize("verb", ["compress", "apply"])
def test_before_every_change_where_folders_cannot_be_exchanged(verb, models, tmp_path):
    """Between two renames there is nothing at the place, and the next run puts the old folder back."""

    def setup():
        sys.modules["dts.files.folder"].exchange = lambda one, other: False

    assert every_kill_point(verb, "old", models, tmp_path, setup=setup) > 8


def test_what_was_set_aside_is_named_and_put_back(models, tmp_path):
    out = prepared("save", "old", models, tmp_path)
    before = faults.content(out)
    out.rename(tmp_path / ".out.old")
    with pytest.raises(faults.dts.AdapterError, match=r"\.out\.old"):
        faults.dts.Adapter.load(out)
    with pytest.warns(UserWarning, match="there again"), pytest.raises(FileExistsError, match="exists"):
        faults.job("save", models, out, "1")()
    assert faults.content(out) == before and [path.name for path in tmp_path.iterdir()] == ["out"]


def test_two_folders_are_exchanged_in_one_step(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    if not place.exchange(tmp_path / "a", tmp_path / "b"):
        pytest.skip("neither this system nor this disk exchanges folders")
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b"]


@pytest.mark.faults
def test_killed_at_random_and_resumed_to_the_same_bytes(models, tmp_path):
    draw, out, log = random.Random(0), tmp_path / "out", tmp_path / "log"
    started = time.monotonic()
    faults.run(faults.job("compress", models, out), log)
    whole, new = time.monotonic() - started, faults.content(out)
    for i in range(24):
        out = tmp_path / f"{i}" / "out"
        for _ in range(3):
            pid = faults.start(faults.job("compress", models, out, resume=True), log)
            time.sleep(draw.random() * whole)
            os.kill(pid, signal.SIGKILL)
            if faults.wait(pid) == faults.DONE or out.exists():
                break
            faults.tried["random kills"] += 1
        if not out.exists():
            assert faults.run(faults.job("compress", models, out, resume=True), log) == faults.DONE, faults.log_of(log)
        assert faults.content(out) == new


@pytest.mark.faults
@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -9), (signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_the_command_is_ended_and_resumed(models, tmp_path, number, code):
    """The real command, ended as soon as it has finished its first tensor."""
    words = [
        sys.executable,
        "-m",
        "dts",
        "compress",
        models / "base",
        models / "one",
        "-o",
        tmp_path / "out",
        "--rank-fraction",
        "30%",
        "--name",
        "t",
        "--resume",
    ]
    slow = (
        "import sys, time, runpy\nfrom dts.adapter import work\nreal = work.KeptWork.keep\n"
        "work.KeptWork.keep = lambda *a: (real(*a), print('kept', flush=True), time.sleep(60))[0]\n"
        f"sys.argv = {[str(word) for word in words[2:]]!r}\n"
        "runpy.run_module('dts', run_name='__main__')"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", slow],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # tests in a shell's background inherit an ignored SIGINT, and a command is right to go on ignoring it
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert child.stdout.readline() == "kept\n"
    child.send_signal(number)
    _, said = child.communicate(timeout=60)
    assert child.returncode == code and "Traceback" not in said
    assert not (tmp_path / "out").exists() and list(tmp_path.glob(".out.partial/entry.*"))
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    faults.job("compress", models, tmp_path / "whole")()
    ours, theirs = faults.content(tmp_path / "out"), faults.content(tmp_path / "whole")
    assert ours["dts_model.safetensors"] == theirs["dts_model.safetensors"]
    faults.tried["ended commands"] += 1
