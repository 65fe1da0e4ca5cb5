"""The stages of the load test: what is asked of a server and of its competitors, and the rows that tell of it."""

from __future__ import annotations

import json
import statistics
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import transformers

from benchmarks.serving.client import Load, Text, run
from benchmarks.serving.made import SMALL, Peft, Question, Size, base_model
from benchmarks.serving.server import VLLM, Server
from benchmarks.serving.steps import steps
from dts.adapter.folder import read_config

ROWS, QUEUE, TURNS = 32, 256, 5
MANY = (1000, 3000, 5000)  # requests
CLIENTS = (1, 4, 16, 32, 64)
OPTIONS = ("--batch", str(ROWS), "--queue", str(QUEUE))
Run = Callable[[], tuple[float, Load | None]]  # tokens a second, and what became of requests where there were some


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


def cycle(asked: Sequence[Question], count: int) -> list[Question]:
    return [asked[i % len(asked)] for i in range(count)]


def tasks_loaded(server: Server, folder: Path, size: Size, tasks: list[str], mixed: list[Question], report: Report):
    """Every task, one after the other; the second half's prompts are not new by then, only their tasks are."""
    half, sizes = len(tasks) // 2, [read_config(folder / "adapters" / task)["bytes"] for task in tasks]
    run(server.port, mixed[:half], 1)
    run(server.port, [replace(one, task=tasks[i]) for i, one in enumerate(mixed[half : 2 * half])], 1)
    before = server.nbytes
    run(server.port, mixed[half : len(tasks)], 1)
    grown = (server.nbytes - before) / sum(sizes[half:])
    loads = server.figure("adapter_load_seconds_count")
    each = 1000 * server.figure("adapter_load_seconds_sum") / max(loads, 1)
    parameters = base_model(size).num_parameters()
    report.add("a task loaded from disk", tasks=loads, mean_ms=round(each, 1), parameters=parameters, aim_ms=50)
    report.add("memory of a task / its bytes on disk", ratio=round(grown, 2), bytes=sizes[-1], aim=1.1)


def rising(server: Server, mixed: list[Question], report: Report) -> None:
    for clients in CLIENTS:
        if report.late:
            report.add("left out", why="out of time", clients=clients)
            continue
        load = run(server.port, cycle(mixed, min(96, max(16, 3 * clients))), clients)
        report.add("mixed", clients=clients, **load.row())


def take_turns(stage: str, what: Mapping[str, Run], report: Report) -> dict[str, float]:
    """The median of tokens a second of each."""
    found: dict[str, list[float]] = {name: [] for name in what}
    last: dict[str, Load] = {}
    for _ in range(TURNS):
        for name, once in what.items():
            tokens_a_second, load = once()
            found[name].append(tokens_a_second)
            if load is not None:
                last[name] = load
                if load.wrong or load.statuses[200] < sum(load.statuses.values()):
                    lost = sum(load.statuses.values()) - load.statuses[200]
                    report.add("wrong", of=name, wrong=load.wrong, lost=lost)
        if report.late:
            break
    medians = {name: statistics.median(each) for name, each in found.items()}
    for name, value in medians.items():
        latencies = {k: last[name].row()[k] for k in ("p50_s", "p99_s")} if name in last else {}
        turns = [round(one, 1) for one in found[name]]
        report.add("turns", stage=stage, of=name, tokens_a_second=round(value, 1), turns=turns, **latencies)
    return medians


def served(
    port: int | Mapping[str, int], asked: Sequence[Question], count: int, text: Text | None = None, exact: bool = True
) -> Run:
    """text: as for `run`;  exact: False where answers may differ from the dense models', so that they are no errors."""

    def once() -> tuple[float, Load]:
        load = run(port, cycle(asked, count), ROWS, text)
        return load.tokens_a_second, load if exact else replace(load, wrong=0)

    return once


def called(peft: Peft, asked: Sequence[Question], count: int) -> Run:
    def once() -> tuple[float, None]:
        begun = time.monotonic()
        return peft.run(cycle(asked, count), ROWS) / (time.monotonic() - begun), None

    return once


def ratios(server: Server, peft: Peft | None, size: Size, tasks: list[str], mixed: list[Question], report: Report):
    count = 2 * ROWS if size is SMALL else ROWS
    eight, one = ([question for question in mixed if question.task in some] for some in (tasks[:8], tasks[:1]))
    what = {name: served(server.port, asked, count) for name, asked in (("all tasks", mixed), ("one task", one))}
    what["8 tasks"] = served(server.port, eight, count)
    if peft is not None:
        what["PEFT, 8 tasks"] = called(peft, eight, count)
    found = take_turns("ratios", what, report)
    report.add(f"{len(tasks)} tasks mixed / one task", ratio=round(found["all tasks"] / found["one task"], 3), aim=0.9)
    if peft is not None:
        report.add("8 tasks / PEFT's mixed batch", ratio=round(found["8 tasks"] / found["PEFT, 8 tasks"], 3), aim=3)


def of_many_lengths(server: Server, peft: Peft | None, eight: list[Question], report: Report) -> None:
    if peft is None:
        return
    count = 4 * ROWS
    what = {"8 tasks": served(server.port, eight, count), "PEFT, 8 tasks": called(peft, eight, count)}
    found = take_turns("lengths", what, report)
    ratio = found["8 tasks"] / found["PEFT, 8 tasks"]
    report.add("8 tasks / PEFT's mixed batch, answers of 6 to 96 tokens", ratio=round(ratio, 3), aim=3)


def processes(server: Server, folder: Path, tasks: list[str], mixed: list[Question], report: Report) -> None:
    four = [question for question in mixed if question.task in tasks[:4]]
    with ExitStack() as stack:
        each = {task: stack.enter_context(Server(folder, *OPTIONS, name=f"log-{task}")) for task in tasks[:4]}
        ports = {task: one.port for task, one in each.items()}
        run(ports, four[:4], 1)
        what = {"4 tasks, a server": served(server.port, four, 2 * ROWS)}
        what["4 tasks, a process each"] = served(ports, four, 2 * ROWS)
        found = take_turns("processes", what, report)
        ratio = found["4 tasks, a server"] / found["4 tasks, a process each"]
        memory = {"server_bytes": server.nbytes, "processes_bytes": sum(one.nbytes for one in each.values())}
    report.add("4 tasks in a server / in a process each", ratio=round(ratio, 3), **memory)


def beside_vllm(
    server: Server,
    python: Path,
    folder: Path,
    size: Size,
    peft: Peft | None,
    tasks: list[str],
    mixed: list[Question],
    report: Report,
) -> None:
    """vLLM's two servers are there one after the other, each beside ours and PEFT: each takes some GiB of memory."""
    words = transformers.AutoTokenizer.from_pretrained(folder / "base")
    text = partial(words.decode, skip_special_tokens=True)
    eight, count = [question for question in mixed if question.task in tasks[:8]], 2 * ROWS if size is SMALL else ROWS
    for mode, exact in (("packed", True), ("lora", False)):
        with VLLM(python, folder, mode, ROWS, len(tasks[:8]), size.rank) as vllm:
            run(vllm.port, eight, ROWS, text)  # loads the tasks
            run(server.port, eight, ROWS)
            what = {"8 tasks": served(server.port, eight, count)}
            what["vLLM, 8 tasks"] = served(vllm.port, eight, count, text, exact)
            if peft is not None:
                what["PEFT, 8 tasks"] = called(peft, eight, count)
            found = take_turns(f"vllm {mode}", what, report)
        for other in ("8 tasks", "PEFT, 8 tasks"):
            if other in found:
                ratio = found["vLLM, 8 tasks"] / found[other]
                report.add(f"vLLM's server, {mode}, 8 tasks / {other}", ratio=round(ratio, 3))


def stepped(folder: Path, peft: Peft | None, tasks: list[str], report: Report) -> None:
    """What binds the ratios to PEFT: the base's own layers are in every step of both."""
    found = steps(folder, tasks[:8], peft, ROWS)
    row = {f"{name}_ms": round(value, 2) for name, value in found.items()}
    row["base_share"] = round(found["base"] / found["tasks"], 2)
    if peft is not None:
        row |= {"peft_to_tasks": round(found["peft"] / found["tasks"], 2)}
        row |= {"peft_to_base": round(found["peft"] / found["base"], 2)}
    report.add(f"a step of {ROWS} rows of 8 tasks", **row)


def crowd(server: Server, mixed: list[Question], report: Report) -> None:
    load = run(server.port, cycle(mixed, 1000), 1000)
    report.add("1,000 clients at once", **load.row(), lost=load.statuses[0], healthy=bool(server.get("/health")))


def many(server: Server, asked: list[Question], report: Report) -> None:
    """What a server that goes on holds of those that it has answered: memory, files."""
    answered = 0
    for until in MANY:
        load = run(server.port, cycle(asked, until - answered), ROWS)
        answered, lost = until, sum(load.statuses.values()) - load.statuses[200]
        held = {"server_bytes": server.nbytes, "files": server.files}
        report.add("after requests", requests=answered, **held, wrong=load.wrong, lost=lost)


def signalled(folder: Path, mixed: list[Question], report: Report) -> None:
    """When 64 requests were taken in and few were answered."""
    with Server(folder, *OPTIONS) as server:
        loads: list[Load] = []
        thread = threading.Thread(target=lambda: loads.append(run(server.port, cycle(mixed, 64), 64)))
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
