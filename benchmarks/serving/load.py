"""`dts serve` under rising load: right answers, latencies, tokens a second, and what a full queue and a signal do.

    python -m benchmarks.serving.load [--size small|100m|135m] [--tasks 16] [--stages ...] [--seconds 240]
        [--vllm python] [--work folder] [--out benchmarks/results/<machine>]

A server process on loopback, a random Llama in float32 and full fine-tunes of it as adapters of rank 16: of 4 layers of
256, of 12 layers of 768, or in the sizes of SmolLM2-135M (of the larger ones all tasks but one are that one's adapter
with its rows in another order).
Every answer is compared with the greedy one of its dense single-task model, token by token.  Clients run in this
process, which takes its part of the machine.  Competitors take turns, and ratios are of the medians of the turns.

Stages:

- tasks: each is loaded from disk, at its first request; what memory the second half of them takes.
- rising: more and more clients, every request another task.
- ratios: 16 tasks mixed beside the same prompts of one task; eight tasks beside PEFT's mixed batch: LoRAs of the same
  rank on the same layers, `generate` with a task a row on batches as large as the server's, prompts of one length
  together, in this process and without HTTP.  All answers have 24 tokens.
- lengths: eight tasks beside PEFT's again, with answers of 6 to 96 tokens: whole calls wait for their longest answer.
- steps: a step of as many rows of eight tasks as the server's batches have, the base's alone and PEFT's, without a
  server: what no server could be faster than.
- processes: four tasks beside a server process for each of them, that is tokens a second and memory.
- vllm: eight tasks beside vLLM's own server of the same base and adapters, with this package's plugin, packed and then
  as LoRAs (which leave out norms: their answers are not compared); only with --vllm, the python of an environment that
  has both.  vLLM takes float32 too, and threads by the same OMP_NUM_THREADS.
- crowd: 1,000 clients at once, most of which are told 429.
- many: what the server has of memory and files after 1,000, 3,000 and 5,000 requests for answers of 4 tokens; only
  where it is named.
- signal: SIGTERM while requests run.

Ends with 1 if an answer was wrong or lost.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import torch

from benchmarks.serving import stages as do
from benchmarks.serving.made import SIZES, SMALL, Peft, Size, lengths, make, questions
from benchmarks.serving.server import Server
from benchmarks.serving.stages import Report
from dts.cli.doctor import cpu_name
from dts.files import write_text
from dts_kernels.cpu import native

TOKENS = 24  # of an answer
STAGES = ("tasks", "rising", "ratios", "lengths", "steps", "processes", "vllm", "crowd", "signal")
NAMED = ("many",)  # which take minutes


def wrongs(report: Report) -> list[str]:
    """What must not be."""
    found = [json.dumps(row) for row in report.rows if row.get("wrong") or row.get("lost") or row.get("code")]
    return [*found, *(json.dumps(row) for row in report.rows if row.get("healthy") is False)]


def measured(folder: Path, size: Size, count: int, stages: Sequence[str], report: Report, vllm: Path | None) -> None:
    tasks = make(folder, count, size)
    mixed = questions(folder, tasks, 2, [TOKENS])
    many = questions(folder, tasks[:8], 4, lengths(32, 6, 96)) if "lengths" in stages else []
    peft = None
    if {"ratios", "lengths", "steps"} & set(stages) or vllm and "vllm" in stages:
        try:
            peft = Peft(tasks[:8], size)
        except ImportError:
            report.add("left out", why="peft is not installed")
    with Server(folder, *do.OPTIONS) as server:
        stage: dict[str, Callable[[], None]] = {
            "tasks": lambda: do.tasks_loaded(server, folder, size, tasks, mixed, report),
            "rising": lambda: do.rising(server, mixed, report),
            "ratios": lambda: do.ratios(server, peft, size, tasks, mixed, report),
            "lengths": lambda: do.of_many_lengths(server, peft, many, report),
            "steps": lambda: do.stepped(folder, peft, tasks, report),
            "processes": lambda: do.processes(server, folder, tasks, mixed, report),
            "vllm": lambda: do.beside_vllm(server, vllm, folder, size, peft, tasks, mixed, report) if vllm else None,
            "many": lambda: do.many(server, questions(folder, tasks, 2, [4]), report),
            "crowd": lambda: do.crowd(server, mixed, report),
        }
        for name in stages:
            if name in stage and report.late:
                report.add("left out", why="out of time", stage=name)
            elif name in stage:
                stage[name]()
    if "signal" in stages:
        do.signalled(folder, mixed, report)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--tasks", type=int, default=16)
    parser.add_argument("--stages", nargs="+", choices=(*STAGES, *NAMED), default=STAGES)
    parser.add_argument("--vllm", type=Path, default=None, help="python of an environment with vLLM and this package")
    parser.add_argument("--seconds", type=float, default=240, help="no stage begins later")
    parser.add_argument(
        "--work", type=Path, default=None, help="folder for the models, kept (default: one for a while)"
    )
    parser.add_argument("--out", type=Path, default=None, help="folder that serving.json, or serving-SIZE.json, is put")
    args = parser.parse_args()
    load_before, size = [round(one, 1) for one in os.getloadavg()], SIZES[args.size]
    report = Report(time.monotonic() + args.seconds)
    with tempfile.TemporaryDirectory() as place:
        folder = args.work or Path(place)
        folder.mkdir(parents=True, exist_ok=True)
        measured(folder, size, args.tasks, args.stages, report, args.vllm)
    about = {
        "what": __doc__.partition("\n")[0],
        "model": f"a random Llama of {size}, float32; adapters of rank {size.rank}",
        "machine": f"{cpu_name()}, {os.cpu_count()} cores, kernels for {native.variant()}",
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "when": datetime.now(UTC).isoformat(timespec="minutes"),
        "load_before": load_before,
        "load_after": [round(one, 1) for one in os.getloadavg()],
        "rows": report.rows,
    }
    if args.out is not None:
        args.out.mkdir(parents=True, exist_ok=True)
        name = "serving.json" if size is SMALL else f"serving-{args.size}.json"
        write_text(args.out / name, json.dumps(about, indent=1) + "\n")
    if wrong := wrongs(report):
        print("\n".join(["wrong or lost:", *wrong]), file=sys.stderr)
        raise SystemExit(1)


if __name__ == "__main__":
    main()
