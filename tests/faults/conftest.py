"""Tiny models; jobs in forked children that end, or fail, before their n-th change of the file system."""

import errno
import os
import signal
import sys
import traceback
from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import dts
from dts.adapter import write_checkpoint

DONE, KILLED, REFUSED, FAILED = 0, 77, 78, 79
CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.truncate"}
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
SIZE = dict(rank_fraction=0.3)
tried = Counter()


def pytest_terminal_summary(terminalreporter):
    if tried:
        terminalreporter.write_line("faults tried: " + ", ".join(f"{n} {what}" for what, n in sorted(tried.items())))


def is_change(event: str, args: tuple) -> bool:
    if event == "open":
        return isinstance(args[2], int) and bool(args[2] & WRITES) and not str(args[0]).startswith("/dev/")
    return event in CHANGES


def before_change(n: int, action) -> None:
    """``action(event, args)`` before the n-th change of the file system that this process makes."""
    seen = 0

    def hook(event, args):
        nonlocal seen
        if is_change(event, args):
            seen += 1
            if seen == n:
                action(event, args)

    sys.addaudithook(hook)


def start(job, log: Path, prepare=None) -> int:
    """The process number of a child that runs ``job()``, then exits with DONE, REFUSED (a clear error) or FAILED."""
    pid = os.fork()
    if pid:
        return pid
    code = FAILED
    try:
        signal.alarm(100)
        if prepare:
            prepare()
        job()
        code = DONE
    except (OSError, ValueError) as error:
        code = REFUSED
        os.write(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), f"{error}\n".encode())
    except BaseException:
        os.write(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), traceback.format_exc().encode())
    finally:
        os._exit(code)


def wait(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def run(job, log: Path, prepare=None) -> int:
    return wait(start(job, log, prepare))


def killed_at(n: int):
    return lambda: before_change(n, lambda event, args: os._exit(KILLED))


def failing_at(n: int, number: int):
    def fail(event, args):
        raise OSError(number, os.strerror(number), str(args[0]))

    return lambda: before_change(n, fail)


def content(folder: Path) -> dict[str, bytes] | None:
    """Names and bytes of a folder's files; None where there is none."""
    if not folder.exists():
        return None
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if not path.name.startswith(".")}


def log_of(log: Path) -> str:
    return log.read_text() if log.exists() else ""


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """A forked child has none of its parent's threads: OpenMP would wait for them for ever."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """A folder with ``base``, its fine-tunes ``one`` and ``two``, and adapters ``a1`` and ``a2`` of them."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("models")
    base = {f"layer.{i}.weight": torch.randn(48, 32) for i in range(3)} | {"layer.0.bias": torch.randn(48)}
    for name in ("base", "one", "two"):
        moved = {key: value + (0.05 * torch.randn_like(value) if name != "base" else 0) for key, value in base.items()}
        (folder / name).mkdir()
        save_file(moved, folder / name / "model.safetensors")
        (folder / name / "config.json").write_text('{"model_type": "tiny"}')
    for name, source in (("a1", "one"), ("a2", "two")):
        dts.compress(folder / "base", folder / source, folder / name, **SIZE)
    return folder


VERBS = ("compress", "save", "apply", "mix", "merge")


def job(verb: str, models: Path, out: Path, which: str = "1", overwrite: bool = False, resume: bool = False):
    """A function that writes the one or the other of two results of a verb to ``out``."""
    other = {"1": "one", "2": "two"}[which]
    weights = {"1": {"x": 0.7, "y": 0.3}, "2": {"x": 0.2, "y": 0.8}}[which]
    adapters = {"x": models / "a1", "y": models / "a2"}
    return {
        "compress": lambda: dts.compress(
            models / "base", models / other, out, overwrite=overwrite, resume=resume, name="t", **SIZE
        ),
        "save": lambda: dts.Adapter.load(models / f"a{which}").truncate(nbytes=6000).save(out, overwrite),
        "apply": lambda: write_checkpoint(models / "base", dts.Adapter.load(models / f"a{which}"), out, overwrite),
        "mix": lambda: dts.unseen.mix(adapters, weights, out, overwrite=overwrite),
        "merge": lambda: dts.merge(
            models / "base",
            [models / "one", models / "two"],
            out=out,
            method="average",
            exclude=["layer.1"] if which == "2" else [],
        ),
    }[verb]


ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EFBIG)
