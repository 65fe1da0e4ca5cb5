"""Many fine-tunes compressed in one run, several at a time: what fails is told, and the rest goes on.

Beside the adapters lies ``.dts-compress.json``: of each fine-tune what was asked, so that a later run of the same file
goes on with what is not there yet, and never takes an adapter of other weights or options for the one it should make.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dts.cli.common import message_of
from dts.cli.recipe import Job, Recipe
from dts.files import write_text
from dts.interrupts import end_quietly, starting

if TYPE_CHECKING:
    from dts.ray.cluster import Cluster

NOTES = ".dts-compress.json"
SECONDS = 0.2  # between two words of progress of one process
PARTS = ("only", "vocabulary")  # of the fine-tune's file that is compared
Progress = Callable[[int, int, str], None]
NOT_COMPARED = ("device", "package", "torch", "code", "format_version")  # what another version makes is as good


def run(
    recipe: Recipe,
    jobs: int = 1,
    overwrite: bool = False,
    dry_run: bool = False,
    progress: Progress = lambda done, total, name: None,
    say: Callable[[str], None] = lambda text: None,
    cluster: Cluster | None = None,
) -> list[dict]:
    """A row a fine-tune, in the file's order: ``state`` "written", "there already", "predicted" or "failed".

    jobs: processes at a time;  overwrite: replace adapters that were made of something else;  say: takes warnings;
    cluster: make them there, instead of in processes of this machine.
    """
    from dts.adapter.compress import opened_base
    from dts.checkpoint.fingerprint import fingerprint

    base = fingerprint(opened_base(recipe.base, recipe.base_is))  # before any work: without it all would fail
    notes = _Notes(recipe.out)
    rows: dict[str, dict] = {}
    left: list[Job] = []
    for job in recipe.jobs:
        try:
            asked = _asked(job, base)
            found = notes.there(job, asked)
        except Exception as error:
            rows[job.name] = _failed(job, error)
            continue
        if found and not dry_run:
            rows[job.name] = found
        else:
            left.append(job)
            if not dry_run:
                notes.begin(job, asked, overwrite)
    done = {job.name: 0.0 for job in left}

    def told(name: str, share: float) -> None:
        done[name] = share
        progress(int(1000 * sum(done.values())), 1000 * len(done), f"{len(rows)} of {len(recipe.jobs)}, {name}")

    def finished(job: Job, row: dict) -> None:
        if row["state"] == "written":
            try:
                notes.finish(job)
            except OSError as error:  # of a machine that writes elsewhere than this one reads
                row = _failed(job, RuntimeError(f"it was written, and cannot be read here: {message_of(error)}"))
        rows[job.name] = row
        told(job.name, 1.0)

    how = {"overwrite": overwrite, "dry_run": dry_run, "resume": not dry_run}
    if cluster is not None and left:
        _on_ray(left, recipe.base, how, cluster, told, finished, say)
    elif jobs == 1:
        for job in left:
            finished(job, _made(job, recipe.base, how, partial(told, job.name), say))
    elif left:
        _in_processes(left, recipe.base, how, jobs, told, finished, say)
    return [rows[job.name] for job in recipe.jobs]


def _asked(job: Job, base: str) -> dict[str, Any]:
    """All that an adapter depends on, as plain data."""
    from dts.adapter.options import Options
    from dts.checkpoint import open_checkpoint
    from dts.checkpoint.fingerprint import fingerprint

    recorded = Options(**job.how).recorded(base, fingerprint(open_checkpoint(job.source)))
    words = {key: job.how.get(key) for key in ("kind", "name", "class_names", "description", *PARTS)}
    return {key: value for key, value in recorded.items() if key not in NOT_COMPARED} | words


class _Notes:
    """What was asked of each adapter in a folder."""

    def __init__(self, folder: Path):
        self.file = folder / NOTES
        try:
            found = json.loads(self.file.read_text("utf-8"))
        except (OSError, ValueError):
            found = {}
        self.found: dict[str, Any] = found if isinstance(found, dict) else {}

    def there(self, job: Job, asked: dict) -> dict | None:
        """The row of an adapter that an earlier run made of the same; None if it is to be made."""
        import dts

        note = self.found.get(job.name)
        config = job.folder / "dts_config.json"
        if not isinstance(note, dict) or note.get("asked") != asked or not config.is_file():
            return None
        sha256 = json.loads(config.read_text("utf-8")).get("sha256")
        # of a run that was killed when the adapter was whole, and this was not noted yet
        young = note.get("sha256") is None and config.stat().st_mtime >= note.get("began", float("inf")) - 1
        if note.get("sha256") != sha256 and not young:
            return None
        return _row(job, "there already", dts.Adapter.load(job.folder))

    def begin(self, job: Job, asked: dict, overwrite: bool) -> None:
        if overwrite or not (job.folder / "dts_config.json").is_file():
            self.found[job.name] = {"asked": asked, "began": time.time(), "sha256": None}
            self._write()

    def finish(self, job: Job) -> None:
        config = json.loads((job.folder / "dts_config.json").read_text("utf-8"))
        self.found[job.name]["sha256"] = config["sha256"]
        self._write()

    def _write(self) -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        write_text(self.file, json.dumps(self.found, indent=1) + "\n")


def _row(job: Job, state: str, adapter) -> dict:
    from dts.cli.inspect import summary

    return summary(adapter) | {
        "name": job.name,
        "source": job.source,
        "folder": str(job.folder),
        "state": state,
        "reason": None,
    }


def _failed(job: Job, error: BaseException) -> dict:
    keys = ("method", "bytes", "amr", "squared_error", "predicted_agreement")
    about = {"name": job.name, "source": job.source, "folder": str(job.folder), "state": "failed"}
    trace = "".join(traceback.format_exception(error))
    reason = message_of(error) if isinstance(error, Exception) else str(error)
    return about | dict.fromkeys(keys) | {"reason": reason, "traceback": trace}


def _made(job: Job, base: str, how: dict, told: Callable[[float], None], say: Callable[[str], None]) -> dict:
    """One fine-tune, in this process."""
    import dts

    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_: say(f"{job.name}: {message}")
            adapter = dts.compress(
                base,
                job.source,
                out=job.folder,
                progress=lambda done, total, name: told(done / total if total else 0.0),
                **job.how,
                **how,
            )
        row = _row(job, "predicted" if how["dry_run"] else "written", adapter)
        if adapter.prediction is not None:
            row["squared_error"] = adapter.prediction.squared_error
        return row
    except Exception as error:
        return _failed(job, error)


def _in_processes(jobs: list[Job], base: str, how: dict, count: int, told, finished, say) -> None:
    """A process each: one that ends, for want of memory say, takes no other with it."""
    spawn = multiprocessing.get_context("spawn")
    threads = max(1, (os.cpu_count() or 1) // count)
    waiting, running = list(jobs), dict[Connection, tuple[Job, Any]]()
    try:
        while waiting or running:
            while waiting and len(running) < count:
                job = waiting.pop(0)
                ours, theirs = spawn.Pipe(duplex=False)
                process = spawn.Process(target=_child, args=(theirs, job, base, how, threads), daemon=True)
                with starting():
                    process.start()
                    running[ours] = job, process
                theirs.close()
            ready = wait(list(running))
            for pipe in [pipe for pipe in running if pipe in ready]:
                job, process = running[pipe]
                try:
                    what, value = pipe.recv()
                except EOFError:
                    what, value = "ended", None
                if what == "progress":
                    told(job.name, value)
                elif what == "warning":
                    say(value)
                else:
                    process.join()
                    del running[pipe]
                    finished(job, value or _failed(job, RuntimeError(_ended(process.exitcode))))
    finally:
        for _, process in running.values():
            process.terminate()
            process.join()


def _on_ray(jobs: list[Job], base: str, how: dict, cluster: Cluster, told, finished, say) -> None:
    """A Ray task each.  Workers have folders of their own, so that places are told whole."""
    from dts.ray.cluster import from_root
    from dts.ray.tasks import in_a_line, run

    named = {job.name: job for job in jobs}

    def ended(name: str, row: dict | None, error: Exception | None) -> None:
        job = named[name]
        about = {"source": job.source, "folder": str(job.folder)}
        finished(job, _failed(job, RuntimeError(in_a_line(error))) if row is None else row | about)

    there = [replace(job, source=from_root(job.source), folder=job.folder.absolute()) for job in jobs]
    run(_made, {job.name: (job, from_root(base), how) for job in there}, cluster, told, ended, say)


def _ended(code: int | None) -> str:
    how = f"by signal {-code}" if code is not None and code < 0 else f"with exit code {code}"
    short = ", as a system does that is short of memory: fewer --jobs need less" if code == -9 else ""
    return f"its process ended {how}{short}"


def _child(pipe, job: Job, base: str, how: dict, threads: int) -> None:
    end_quietly()
    import torch

    torch.set_num_threads(threads)
    last = 0.0

    def told(share: float) -> None:
        nonlocal last
        if time.monotonic() - last > SECONDS:
            last = time.monotonic()
            pipe.send(("progress", share))

    pipe.send(("done", _made(job, base, how, told, lambda text: pipe.send(("warning", text)))))
