"""Several writers to one place: one at a time, none mixed with another, and the refused ones know by whom."""

import os
import re
import threading

import pytest

import dts
from dts.files import Busy, Lock, building, lock

from . import conftest as faults


@pytest.mark.faults
@pytest.mark.parametrize("verb", faults.VERBS)
@pytest.mark.parametrize("writers", [2, 4])
def test_processes_race(verb, writers, models, tmp_path):
    """All start at one signal; two results alternate, and what is there in the end is one of the two whole."""
    whole = []
    for which in "12":
        faults.job(verb, models, tmp_path / which / "out", which)()
        whole.append(faults.content(tmp_path / which / "out"))
    for i in range(6):
        folder = tmp_path / f"race{i}"
        folder.mkdir()
        gate, opened = os.pipe()
        logs = [folder.parent / f"log{i}.{k}" for k in range(writers)]
        children = [
            faults.start(
                faults.job(verb, models, folder / "out", "12"[k % 2], overwrite=True),
                log,
                lambda gate=gate: os.read(gate, 1),
            )
            for k, log in enumerate(logs)
        ]
        os.write(opened, b"x" * writers)
        codes = [faults.wait(child) for child in children]
        os.close(gate), os.close(opened)
        said = [faults.log_of(log) for log in logs]
        assert set(codes) <= {faults.DONE, faults.REFUSED} and faults.DONE in codes, said
        for code, text in zip(codes, said):
            if code == faults.REFUSED and not (verb == "merge" and "is not empty" in text):
                found = re.search(r"is being written by process (\d+), started \d{4}-\d\d-\d\d \d\d:\d\d:\d\d", text)
                assert found and int(found[1]) in children, text
        assert faults.content(folder / "out") in whole
        assert [path.name for path in folder.iterdir()] == ["out"]
        faults.tried[f"races of {writers}"] += 1


def test_a_thread_and_another_process_are_refused(models, tmp_path):
    out, log, said = tmp_path / "out", tmp_path / "log", []

    def second():
        try:
            faults.job("save", models, out)()
        except Busy as error:
            said.append(str(error))

    with building(out, lambda: None):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
        assert faults.run(faults.job("compress", models, out), log) == faults.REFUSED
    assert f"process {os.getpid()}, started" in said[0] and "in another thread" in said[0]
    assert f"process {os.getpid()}, started" in faults.log_of(log) and str(out) in faults.log_of(log)
    assert not list(tmp_path.glob("*out*"))
    faults.job("compress", models, out)()


@pytest.mark.parametrize("flock", [True, False])
def test_a_killed_owner_does_not_block(tmp_path, monkeypatch, flock):
    if not flock:
        monkeypatch.setattr(lock, "fcntl", None)
    file = tmp_path / ".out.lock"

    def killed():
        Lock(file, tmp_path / "out")
        os._exit(faults.KILLED)

    assert faults.run(killed, tmp_path / "log") == faults.KILLED and file.exists()
    held = Lock(file, tmp_path / "out")
    with pytest.raises(Busy, match=f"process {os.getpid()}, started"):
        Lock(file, tmp_path / "out")
    held.release()
    assert not file.exists()


def test_an_owner_that_ends_meanwhile_does_not_block(tmp_path, monkeypatch):
    """It lets go after the lock was found held and before its name could be read: free, not held by nobody."""
    file = tmp_path / ".out.lock"
    first, read = Lock(file, tmp_path / "out"), lock._owner

    def ended_by_now(path):
        first.release()
        return read(path)

    monkeypatch.setattr(lock, "_owner", ended_by_now)
    second = Lock(file, tmp_path / "out")
    assert read(file)["pid"] == os.getpid()
    second.release()


def test_a_process_of_the_same_number_is_another_one(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "fcntl", None)
    me = lock._me()
    assert not lock.gone(me) and lock.gone(me | {"started": me["started"] - 1}) and not lock.gone(me | {"host": "moon"})


def test_a_child_does_not_keep_its_parents_lock(tmp_path):
    """A worker that outlives its killed parent must not block the next run."""
    held = Lock(tmp_path / ".out.lock", tmp_path / "out")
    reader, writer = os.pipe()
    up, running = os.pipe()
    child = os.fork()
    if not child:
        os.close(writer)
        os.write(running, b"x")
        os.read(reader, 1)
        os._exit(0)
    os.read(up, 1)
    os.close(held.descriptor)  # as the kernel does with a killed process's
    held.descriptor = None
    try:
        Lock(tmp_path / ".out.lock", tmp_path / "out").release()
    finally:
        os.close(writer)
    assert faults.wait(child) == 0


def test_files_of_another_run_are_not_taken(models, tmp_path, monkeypatch):
    """The entries of a run of "two" under the names of one of "one": each says whose it is."""
    module = __import__("sys").modules["dts.adapter.compress"]

    def stop(*args, **rest):
        raise KeyboardInterrupt

    for which in "12":
        with monkeypatch.context() as patch:
            patch.setattr(module, "write_folder", stop)
            with pytest.raises(KeyboardInterrupt):
                faults.job("compress", models, tmp_path / which / "out", which)()
    for file in (tmp_path / "2" / ".out.partial").glob("*.safetensors"):
        file.replace(tmp_path / "1" / ".out.partial" / file.name)
    faults.job("compress", models, tmp_path / "1" / "out", "1", resume=True)()
    faults.job("compress", models, tmp_path / "3" / "out", "1")()
    assert faults.content(tmp_path / "1" / "out") == faults.content(tmp_path / "3" / "out")


@pytest.mark.parametrize("verb", ["compress", "apply", "merge"])
def test_a_source_that_changes_while_it_is_read_is_refused(verb, models, tmp_path, monkeypatch):
    import shutil

    shutil.copytree(models, tmp_path / "m")
    real, file = dts.checkpoint.Checkpoint.load, tmp_path / "m" / "base" / "model.safetensors"
    content = file.read_bytes()

    def load(checkpoint, name):
        if file.read_bytes() == content:
            new = file.with_suffix(".new")
            new.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
            new.replace(file)
        return real(checkpoint, name)

    monkeypatch.setattr(dts.checkpoint.Checkpoint, "load", load)
    with pytest.raises(ValueError, match="changed meanwhile.*base/model.safetensors changed.*run again"):
        faults.job(verb, tmp_path / "m", tmp_path / "out")()
    assert [path.name for path in tmp_path.iterdir()] == ["m"]
