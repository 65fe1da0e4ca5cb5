"""`dts serve` under rising load: right answers, latencies, tokens a second, and what a full queue and a signal do.

    python -m benchmarks.serving.load [--tasks 16] [--seconds 240] [--out benchmarks/results/<machine>]

A server process on loopback, a random Llama of 4 layers of 256 in float32 and full fine-tunes of it as adapters of rank
16.  Every answer is compared with the greedy one of its dense single-task model, token by token.  Clients run in this
process, which takes its part of the machine.  Competitors take turns, and ratios are of the medians of the turns:

- mixed: every request another task;  one: the same prompts, all by one task;
- PEFT: LoRAs of the same rank on the same layers, eight tasks, `generate` with a task a row on batches as large as the
  server's, in this process and without HTTP.

Then 1,000 clients come at once, and SIGTERM comes while requests run.  Ends with 1 if an answer was wrong or lost.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from benchmarks.kernels.cpu import cpu_name
from benchmarks.serving.client import Load, run
from benchmarks.serving.made import HIDDEN, LAYERS, RANK, Peft, Question, base_model, make, questions
from dts.files import write_text
from dts_kernels.cpu import native

TOKENS, ROWS, QUEUE, TURNS = 24, 32, 256, 3
CLIENTS = (1, 4, 16, 32, 64)


class Server:
    """A `dts serve` process.  Used as a context, it is ended."""

    def __init__(self, folder: Path, *options: str):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        words = ["serve", str(folder / "base"), "-a", str(folder / "adapters"), "--port", str(self.port), *options]
        words += ["--device", "cpu", "--batch", str(ROWS), "--queue", str(QUEUE), "--drain", "120"]
        self.log = (folder / "log").open("w")
        self.process = subprocess.Popen([sys.executable, "-m", "dts", *words], stdout=self.log, stderr=self.log)
        end = time.monotonic() + 120
        while not self.get("/ready"):
            if self.process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"the server did not start: {(folder / 'log').read_text()[-2000:]}")
            time.sleep(0.2)

    def get(self, path: str) -> str:
        try:
            return urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=10).read().decode()
        except OSError:
            return ""

    def figure(self, name: str) -> float:
        """The sum of one of /metrics' figures."""
        lines = [line for line in self.get("/metrics").splitlines() if line.startswith(f"dts:{name}")]
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.partition(name)[2][:1] in ("{", " "))

    def end(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(180)

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.end()
        self.log.close()


class Report:
    """Rows as they come, on the screen and in a file."""

    def __init__(self, until: float):
        self.rows: list[dict[str, Any]] = []
        self.until = until

    @property
    def late(self) -> bool:
        return time.monotonic() > self.until

    def add(self, what: str, **row: Any) -> None:
        self.rows.append({"what": what, **row})
        print(json.dumps(self.rows[-1]), flush=True)


def cycle(asked: list[Question], count: int) -> list[Question]:
    return [asked[i % len(asked)] for i in range(count)]


def rising(server: Server, mixed: list[Question], report: Report) -> None:
    for clients in CLIENTS:
        if report.late:
            report.add("left out", why="out of time", clients=clients)
            continue
        load = run(server.port, cycle(mixed, min(96, max(16, 3 * clients))), clients, TOKENS)
        report.add("mixed", clients=clients, **load.row())


def ratios(server: Server, mixed: list[Question], tasks: list[str], report: Report) -> None:
    """Takes turns: mixed tasks, one task, and PEFT's mixed batch of eight."""
    count = 2 * ROWS
    eight = [one for one in mixed if one.task in tasks[:8]]
    one = [question for question in mixed if question.task == tasks[0]]
    try:
        peft = Peft(tasks[:8])
    except ImportError:
        peft = None
        report.add("left out", why="peft is not installed")
    found: dict[str, list[float]] = {"all tasks": [], "one task": [], "8 tasks": [], "PEFT, 8 tasks": []}
    loads: dict[str, Load] = {}
    for _ in range(TURNS):
        for what, asked in {"all tasks": mixed, "one task": one, "8 tasks": eight}.items():
            loads[what] = run(server.port, cycle(asked, count), ROWS, TOKENS)
            found[what].append(loads[what].tokens_a_second)
            if loads[what].wrong:
                report.add("wrong", of=what, wrong=loads[what].wrong)
        if peft is not None:
            begun = time.monotonic()
            made = peft.run(cycle(eight, count), TOKENS, ROWS)
            found["PEFT, 8 tasks"].append(made / (time.monotonic() - begun))
        if report.late:
            break
    medians = {what: statistics.median(each) for what, each in found.items() if each}
    for what, value in medians.items():
        latencies = {} if what not in loads else {k: loads[what].row()[k] for k in ("p50_s", "p99_s")}
        report.add("turns", of=what, clients=ROWS, tokens_a_second=round(value, 1), turns=len(found[what]), **latencies)
    report.add(
        f"{len(tasks)} tasks mixed / one task", ratio=round(medians["all tasks"] / medians["one task"], 3), aim=0.9
    )
    if peft is not None:
        report.add("8 tasks / PEFT's mixed batch", ratio=round(medians["8 tasks"] / medians["PEFT, 8 tasks"], 3), aim=3)


def crowd(server: Server, mixed: list[Question], report: Report) -> None:
    """1,000 clients at once, most of which are told 429."""
    load = run(server.port, cycle(mixed, 1000), 1000, TOKENS)
    report.add("1,000 clients at once", **load.row(), lost=load.statuses[0], healthy=bool(server.get("/health")))


def signalled(folder: Path, mixed: list[Question], report: Report) -> None:
    """SIGTERM when 64 requests were taken in and few were answered."""
    with Server(folder) as server:
        loads: list[Load] = []
        thread = threading.Thread(target=lambda: loads.append(run(server.port, cycle(mixed, 64), 64, TOKENS)))
        thread.start()
        end = time.monotonic() + 60
        while (taken := server.figure("num_requests_running") + server.figure("num_requests_waiting")) < 48:
            if time.monotonic() > end or not thread.is_alive():
                break
            time.sleep(0.005)
        code = server.end()
        thread.join(120)
        load = loads[0]
        report.add(
            "SIGTERM under load", running_or_waiting=taken, code=code, **load.row(), lost=64 - load.statuses[200]
        )


def wrongs(report: Report) -> list[str]:
    """What must not be."""
    found = [json.dumps(row) for row in report.rows if row.get("wrong") or row.get("lost") or row.get("code")]
    return [*found, *(json.dumps(row) for row in report.rows if row.get("healthy") is False)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=240, help="no stage begins later")
    parser.add_argument(
        "--work", type=Path, default=None, help="folder for the models, kept (default: one for a while)"
    )
    parser.add_argument("--out", type=Path, default=None, help="folder that serving.json is written to")
    args = parser.parse_args()
    load_before = [round(one, 1) for one in os.getloadavg()]
    with tempfile.TemporaryDirectory() as place:
        folder = args.work or Path(place)
        folder.mkdir(parents=True, exist_ok=True)
        tasks = make(folder, args.tasks)
        mixed = questions(folder, tasks, 2, TOKENS)
        report = Report(time.monotonic() + args.seconds)
        with Server(folder) as server:
            run(server.port, mixed[: len(tasks)], 1, 1)  # every task is loaded
            loads = server.figure("adapter_load_seconds_count")
            each = 1000 * server.figure("adapter_load_seconds_sum") / max(loads, 1)
            size = base_model().num_parameters()
            report.add("a task loaded from disk", tasks=loads, mean_ms=round(each, 1), parameters=size)
            rising(server, mixed, report)
            ratios(server, mixed, tasks, report)
            crowd(server, mixed, report)
        signalled(folder, mixed, report)
    about = {
        "what": __doc__.partition("\n")[0],
        "model": f"a random Llama of {LAYERS} layers of {HIDDEN}, float32; adapters of rank {RANK}",
        "machine": f"{cpu_name()}, {os.cpu_count()} cores, kernels for {native.variant()}",
        "torch": torch.__version__,
        "when": datetime.now(UTC).isoformat(timespec="minutes"),
        "load_before": load_before,
        "rows": report.rows,
    }
    if args.out is not None:
        args.out.mkdir(parents=True, exist_ok=True)
        write_text(args.out / "serving.json", json.dumps(about, indent=1) + "\n")
    if wrong := wrongs(report):
        print("\n".join(["wrong or lost:", *wrong]), file=sys.stderr)
        raise SystemExit(1)


if __name__ == "__main__":
    main()
