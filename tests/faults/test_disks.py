"""Full disks, disks and folders that may not be written to: nothing is lost, and the error says what to do."""

import errno
import itertools
import os
import resource
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

import pytest

from . import conftest as faults

WORDS = {
    errno.ENOSPC: "no space left",
    errno.EDQUOT: "quota",
    errno.EACCES: "no permission",
    errno.EROFS: "read-only",
    errno.EFBIG: "larger than",
}


def every_failure(verb, number, models, tmp_path, step=1):
    """Fails every step-th change, looks, runs again, looks."""
    log = tmp_path / "log"
    overwrite = verb != "merge"
    faults.job(verb, models, tmp_path / "out", "1")()
    new = faults.content(tmp_path / "out")
    for n in itertools.count(1, step):
        folder = tmp_path / f"{n}"
        folder.mkdir()
        out = folder / "out"
        if overwrite:
            faults.job(verb, models, out, "2")()
        old = faults.content(out)
        log.unlink(missing_ok=True)
        code = faults.run(faults.job(verb, models, out, "1", overwrite), log, faults.failing_at(n, number))
        said, found = faults.log_of(log), faults.content(out)
        assert code in (faults.DONE, faults.REFUSED), f"change {n}: {said}"
        assert found == new if code == faults.DONE else found == old, f"change {n}: {said}"
        if code == faults.REFUSED:
            faults.tried[f"failures of {verb}"] += 1
            assert WORDS[number] in said and str(out) in said and "Choose" in said or "run again" in said, (n, said)
            assert ".out." not in said, (n, said)
            code = faults.run(faults.job(verb, models, out, "1", overwrite, resume=True), log)
            assert code == faults.DONE and faults.content(out) == new, (n, faults.log_of(log))
        elif n > 60 or not [p for p in folder.iterdir() if p.name != "out"] and n > 25:
            return


@pytest.mark.faults
@pytest.mark.parametrize("verb", faults.VERBS)
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EROFS])
def test_every_change_fails(verb, number, models, tmp_path):
    every_failure(verb, number, models, tmp_path, step=1 if number == errno.ENOSPC else 4)


def test_some_changes_fail(models, tmp_path):
    every_failure("save", errno.ENOSPC, models, tmp_path, step=3)


@pytest.mark.faults
@pytest.mark.parametrize("verb", faults.VERBS)
def test_files_larger_than_allowed(verb, models, tmp_path):
    """The kernel's own refusal in the middle of a write."""
    log = tmp_path / "log"
    for limit in (100, 1000, 3000):
        out = tmp_path / f"{limit}"

        def prepare(limit=limit):
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

        if faults.run(faults.job(verb, models, out), log, prepare) == faults.REFUSED:
            assert not out.exists()
            faults.tried["limits of a file's size"] += 1
            assert faults.run(faults.job(verb, models, out), log) == faults.DONE, faults.log_of(log)
    assert (tmp_path / "100").is_dir() and "larger than" in faults.log_of(log)


@pytest.fixture
def small_disk(tmp_path):
    """A function that mounts a disk of so many KiB and gives its folder; skips where that is not allowed."""
    mounted = []

    def mount(size: int, options: str = "rw"):
        folder = tmp_path / f"disk{len(mounted)}"
        folder.mkdir()
        made = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size}k,{options}", "tmpfs", folder], capture_output=True, text=True
        )
        if made.returncode:
            pytest.skip(f"may not mount a disk here: {made.stderr.strip()}")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "-l", folder], check=True)


@pytest.mark.faults
@pytest.mark.parametrize("verb", faults.VERBS)
def test_a_small_disk_fills_up(verb, models, tmp_path, small_disk):
    log = tmp_path / "log"
    for size in (4, 8, 12, 16, 24, 36):
        disk = small_disk(size)
        out = disk / "out"
        code = faults.run(faults.job(verb, models, out), log)
        said = faults.log_of(log)
        if code == faults.DONE:
            continue
        assert code == faults.REFUSED and "no space left" in said and str(out) in said, said
        assert not out.exists()
        faults.tried["full disks"] += 1
        subprocess.run(["mount", "-o", "remount,size=4m", disk], check=True)
        assert faults.run(faults.job(verb, models, out, resume=True), log) == faults.DONE, faults.log_of(log)


@pytest.mark.faults
def test_a_mount_point_is_filled_but_not_replaced(models, tmp_path, small_disk):
    disk = small_disk(4096)
    faults.job("compress", models, disk)()
    new = faults.content(disk)
    assert "dts_config.json" in new and sorted(p.name for p in disk.iterdir()) == sorted(new)
    with pytest.raises(OSError, match="file system of its own.*in it"):
        faults.job("compress", models, disk, "2", overwrite=True)()
    assert faults.content(disk) == new


@pytest.mark.faults
@pytest.mark.parametrize("verb", faults.VERBS)
def test_a_read_only_disk(verb, models, small_disk):
    disk = small_disk(64, "ro")
    with pytest.raises(OSError, match="read-only.*Choose another folder"):
        faults.job(verb, models, disk / "out")()


@pytest.mark.parametrize("verb", ["save", "merge"])
def test_an_ordinary_user_without_permission(verb, models):
    """Root may write everywhere, so the child becomes nobody; temporary folders of pytest are closed to him."""
    with tempfile.TemporaryDirectory() as place:
        opened, closed = Path(place), Path(place) / "closed"
        closed.mkdir()
        shutil.copytree(models, opened / "models")
        for path in (opened, *(opened / "models").rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)
        (opened / "models").chmod(0o755)
        out, log = closed / "out", opened / "log"
        log.touch()
        log.chmod(0o666)
        closed.chmod(0o555)

        def ordinary():
            if os.getuid() == 0:
                os.setresuid(65534, 65534, 65534)

        code = faults.run(faults.job(verb, opened / "models", out), log, ordinary)
        closed.chmod(0o755)
        assert code == faults.REFUSED, faults.log_of(log)
        assert f"no permission to write {out}" in faults.log_of(log) and "Choose another" in faults.log_of(log)


def test_names_and_paths_that_cannot_be(models, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="too long.*Choose a shorter"):
        faults.job("save", models, tmp_path / ("n" * 300))()
    with pytest.raises(OSError, match="a part of its path is a file"):
        faults.job("save", models, tmp_path / "file" / "out")()
    faults.job("save", models, tmp_path / ("n" * 250))()  # its neighbours' names would be too long
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    faults.job("save", models, tmp_path / "link")()
    faults.job("save", models, tmp_path / "link", "2", overwrite=True)()
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real" / "dts_config.json").is_file()
    assert sorted(p.name[:4] for p in tmp_path.iterdir()) == ["file", "link", "nnnn", "real"]


def test_what_is_not_ours_is_not_removed(models, tmp_path):
    (tmp_path / ".out.saving").mkdir()
    (tmp_path / ".out.saving" / "thesis").write_text("mine")
    with pytest.raises(FileExistsError, match="not made by dts"):
        faults.job("save", models, tmp_path / "out")()
    assert (tmp_path / ".out.saving" / "thesis").read_text() == "mine"


def test_the_working_folder_is_replaced_and_still_stood_in(models, tmp_path, monkeypatch):
    faults.job("save", models, tmp_path / "out", "2")()
    monkeypatch.chdir(tmp_path / "out")
    faults.dts.Adapter.load(models / "a1").save(".", overwrite=True)
    assert os.path.samefile(".", tmp_path / "out") and os.path.isfile("dts_config.json")
