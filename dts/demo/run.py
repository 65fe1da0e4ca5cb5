"""The main job on real input: fine-tune, compress, load one base with every task, answer, and show what was lost."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

import dts
from dts import metrics
from dts.demo import evaluate
from dts.demo.finetune import Recipe, base_folder, checkpoint_path, finetune
from dts.demo.leave import leave
from dts.demo.tasks import Task, demo_tasks, folder_tasks
from dts.files import write_text
from dts.interrupts import end_quietly, starting

DATA_TASKS = ("trec6", "sst2", "stackoverflow20", "tweet_emotion")  # of a data folder, where none are named
LINE_SECONDS = 10  # between lines of progress where there is no terminal
MIXED_ROWS = 2  # of each task in the batch of many tasks


@dataclass(frozen=True)
class Size:
    """One adapter to make of each task: a method and a size for `dts.compress`."""

    method: str
    label: str
    how: dict[str, float] = dataclasses.field(hash=False)

    @property
    def slug(self) -> str:
        return f"{self.method}-{self.label.replace('%', 'pct')}"


SIZES = (
    Size("paper", "r=.3", {"rank_fraction": 0.3}),
    Size("auto", "0.5%", {"budget": 0.005}),
    Size("auto", "1%", {"budget": 0.01}),
)
SHOWN = ("paper-r=.3", "auto-0.5pct", "auto-1pct")  # in the table: as published, and ours in fewer bytes
SERVED = "auto-1pct"  # answers the batch of many tasks
RECIPE = Recipe(epochs=2, learning_rate=3e-4, max_length=32)  # short: the whole demo is to take minutes
TEST_TEXTS = 300  # of a task, at most: five models answer each


def run(
    data: str | Path | None = None,
    names: list[str] | None = None,
    out: str | Path = "demo",
    cache: str | Path | None = None,
    console: Console | None = None,
) -> dict:
    """Runs the demo and returns its report, which is also written to ``out/report.json`` beside ``frontier.png``.

    data: a folder of data sets (see `folder_tasks`), else those that arrive with pip;  names: which tasks of it;
    out: adapters, report and plot;  cache: fine-tunes (default `cache_folder`);  console: where progress is shown.

    What an earlier run already made, from the same data, recipe and code, is used again.
    """
    console = console or Console(stderr=True, markup=False, highlight=False)
    _quiet()
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    tasks = _tasks(data, names)
    base = base_folder()
    console.print(f"One base, MiniLM-L6, and {len(tasks)} tasks: {', '.join(task.name for task in tasks)}")

    folders = _finetunes(tasks, base, cache, console)
    rows = _rows(tasks, folders, base, out / "adapters", console)
    model, mixed = _mixed_batch(tasks, rows, base, console)
    report = {
        "base": {"name": "all-MiniLM-L6-v2", "bytes": dts.open_checkpoint(base).nbytes},
        "tasks": rows,
        "mean": _mean(rows),
        "mixed_batch": mixed,
        "memory": _memory(rows, model, base),
        "seconds": round(time.perf_counter() - started, 1),
    }
    write_text(out / "report.json", json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    from dts.demo.plot import frontier

    frontier(report, out / "frontier.png")
    leave(out / "models", base, {task.name: (folders[task.name], task) for task in tasks})
    left = ("report.json", "frontier.png", "adapters", "models")
    report["written"] = [str(out / name) for name in left]
    return report


def _tasks(data: str | Path | None, names: list[str] | None) -> list[Task]:
    if data is None:
        tasks = demo_tasks()
        known = {task.name: task for task in tasks}
        unknown = [name for name in names or [] if name not in known]
        if unknown:
            raise ValueError(f"the demo has no task {', '.join(unknown)}; it has {', '.join(known)}")
        return [known[name] for name in names] if names else tasks
    folder = Path(data)
    if not (folder / "info.json").is_file() and (folder / "text" / "info.json").is_file():
        folder = folder / "text"
    if names is None:
        names = [name for name in DATA_TASKS if (folder / f"{name}.tsv.gz").is_file()] or None
    return folder_tasks(folder, names)


# ---- fine-tunes ------------------------------------------------------------------------------------------------


def _finetunes(tasks: list[Task], base: Path, cache, console: Console) -> dict[str, Path]:
    cache = Path(cache) if cache else None
    folders = {}
    for done, task in enumerate(tasks, 1):
        title = f"fine-tune {done}/{len(tasks)}: {task.name}, {len(task.class_names)} classes"
        if checkpoint_path(task, RECIPE, base=base, cache=cache).is_dir():
            folders[task.name] = finetune(task, RECIPE, base=base, cache=cache)
            console.print(f"  {title}: cached in {folders[task.name]}", soft_wrap=True)
            continue
        start = time.perf_counter()
        with _bar(console, title) as step:
            folders[task.name] = finetune(
                task,
                RECIPE,
                base=base,
                cache=cache,
                progress=lambda done, total, loss: step(done, total, f"loss {loss:.2f}"),
            )
        console.print(f"  {title}: {time.perf_counter() - start:.0f} s")
    return folders


# ---- adapters, and what they keep ------------------------------------------------------------------------------


def _rows(tasks: list[Task], folders: dict[str, Path], base: Path, out: Path, console: Console) -> list[dict]:
    """The tasks' rows of the report: from an earlier run where nothing they depend on changed."""
    keys = {task.name: _key(folders[task.name], base) for task in tasks}
    rows = {task.name: _stored(out / task.name, keys[task.name]) for task in tasks}
    for name in [name for name, row in rows.items() if row]:
        console.print(f"  adapters of {name}: cached in {out / name}", soft_wrap=True)
    new = [task for task in tasks if not rows[task.name]]
    _compress(new, folders, base, out, console)
    for task in new:
        start = time.perf_counter()
        with _bar(console, f"measure {task.name}") as step:
            measured = _measure(task, folders[task.name], base, out / task.name, step) | {"key": keys[task.name]}
        write_text(out / task.name / "measured.json", json.dumps(measured, indent=2, ensure_ascii=False) + "\n")
        rows[task.name] = measured
        console.print(f"  measure {task.name}: {time.perf_counter() - start:.0f} s")
    return [row for task in tasks if (row := rows[task.name])]


def _stored(adapters: Path, key: str) -> dict | None:
    file = adapters / "measured.json"
    row = json.loads(file.read_text("utf-8")) if file.is_file() else {}
    whole = all((adapters / size.slug / "dts_config.json").is_file() for size in SIZES)
    return row if whole and row.get("key") == key else None


def _compress(tasks: list[Task], folders: dict[str, Path], base: Path, out: Path, console: Console) -> None:
    """Every task at every size.  One compression keeps one core busy, so there are as many at a time as cores."""
    jobs = [
        (base, folders[task.name], out / task.name / size.slug, size, task.name, task.class_names, task.question)
        for task in tasks
        for size in SIZES
    ]
    if not jobs:
        return
    start, cores = time.perf_counter(), min(len(jobs), os.cpu_count() or 1)
    title = f"compress {len(tasks)} tasks at {len(SIZES)} sizes"
    spawn = multiprocessing.get_context("spawn")
    with _bar(console, title) as step, ProcessPoolExecutor(cores, spawn, _helper) as pool:
        with starting():
            made = pool.map(_compressed, jobs)
        for done, folder in enumerate(made, 1):
            step(done, len(jobs), f"{folder.parent.name}, {folder.name}")
    console.print(f"  {title}: {time.perf_counter() - start:.0f} s")


def _helper() -> None:
    end_quietly()
    torch.set_num_threads(1)


def _compressed(job: tuple) -> Path:
    base, finetuned, out, size, name, class_names, question = job
    dts.compress(
        base,
        finetuned,
        out=out,
        overwrite=True,
        method=size.method,
        name=name,
        class_names=class_names,
        description=question,
        **size.how,
    )
    return out


def _measure(task: Task, folder: Path, base: Path, adapters: Path, step: Callable) -> dict:
    texts, labels = task.split("test")
    texts, labels = texts[:TEST_TEXTS], labels[:TEST_TEXTS]
    total = len(SIZES) + 2
    step(0, total, "the fine-tune's own answers")
    finetuned, tokenizer = evaluate.load_finetuned(folder)
    reference = evaluate.logits(finetuned, tokenizer, texts)
    del finetuned
    made = [dts.Adapter.load(adapters / size.slug) for size in SIZES]

    step(1, total, "the base's answers")
    model = dts.DTSModel.from_pretrained(base, adapters={"head only": _head_of(made[-1])})

    def logits(name: str) -> torch.Tensor:
        model.set_task(name)
        return evaluate.logits(model, tokenizer, texts)

    accuracy = evaluate.score(reference, reference, labels).accuracy
    before = evaluate.score(logits("head only"), reference, labels).accuracy
    results: list[dict] = []
    for size, adapter in zip(SIZES, made):
        step(2 + len(results), total, f"answers of {size.method} {size.label}")
        model.load_task(size.slug, adapter)
        score = evaluate.score(logits(size.slug), reference, labels)
        model.delete_task(size.slug)
        results.append(
            {
                "adapter": size.slug,
                "method": size.method,
                "size": size.label,
                "folder": str(adapters / size.slug),
                "bytes": adapter.nbytes,
                "amr": adapter.amr,
                "accuracy": score.accuracy,
                "adr": metrics.adr(accuracy, score.accuracy),
                "agreement": score.agreement,
                "kl": score.kl,
            }
        )
    shown = list(range(MIXED_ROWS))
    return {
        "name": task.name,
        "question": task.question,
        "class_names": task.class_names,
        "source": task.source,
        "licence": task.licence,
        "train": len(task.split("train")[0]),
        "test": len(texts),
        "finetuned": str(folder),
        "accuracy_finetuned": accuracy,
        "accuracy_base": before,
        "adapters": results,
        "examples": [{"text": texts[i], "label": labels[i], "finetuned": reference[i].argmax().item()} for i in shown],
    }


def _head_of(adapter) -> dts.Adapter:
    """The adapter without its differences: the base as it was, with the task's own head on top."""
    return dataclasses.replace(adapter, entries={n: e for n, e in adapter.entries.items() if e.task_only})


def _key(folder: Path, base: Path) -> str:
    """Changes with the fine-tune, the base, the sizes, and any code that the result depends on."""
    package = Path(dts.__file__).parent
    code = [package / "metrics.py", Path(__file__), *package.glob("demo/evaluate.py")]
    for part in ("codec", "adapter", "checkpoint", "nn"):
        code += sorted((package / part).rglob("*.py"))
    code += sorted(p for p in (package.parent / "dts_kernels").rglob("*") if p.suffix in (".py", ".c", ".h"))
    digest = hashlib.sha256(f"{folder.name} {base} {SIZES} {TEST_TEXTS}".encode())
    for path in code:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


# ---- one base, every task --------------------------------------------------------------------------------------


def _mixed_batch(tasks: list[Task], rows: list[dict], base: Path, console: Console):
    """Loads the base once with the served adapter of each task, and answers one batch of all tasks, row by row."""
    from transformers import AutoTokenizer

    console.print(f"  load the base once with {len(rows)} adapters, answer a batch in which every row is another task")
    served = {row["name"]: _result(row, SERVED)["folder"] for row in rows}
    model = dts.DTSModel.from_pretrained(base, adapters=served)
    tokenizer = AutoTokenizer.from_pretrained(rows[0]["finetuned"])
    asked = [(row, row["examples"][i]) for i in range(MIXED_ROWS) for row in rows]
    encoded = []
    for _, example in asked:
        first, *second = [example["text"]] if isinstance(example["text"], str) else example["text"]
        encoded.append(tokenizer(first, *second, truncation=True))
    inputs = tokenizer.pad(encoded, return_tensors="pt")
    names = [row["name"] for row, _ in asked]
    with torch.inference_mode():
        logits = model.task_logits(model(**inputs, tasks=names))
    answers = []
    for (row, example), row_logits in zip(asked, logits):
        chances = row_logits.float().softmax(-1)
        answers.append(
            {
                "task": row["name"],
                "text": example["text"],
                "answer": row["class_names"][chances.argmax()],
                "confidence": chances.max().item(),
                "finetuned": row["class_names"][example["finetuned"]],
                "truth": row["class_names"][example["label"]],
            }
        )
    return model, answers


def _memory(rows: list[dict], model: dts.DTSModel, base: Path) -> dict:
    """Bytes of all tasks as full fine-tunes, and as one base with packed adapters in memory."""
    size = dts.open_checkpoint(base).nbytes
    return {"full_finetunes": len(rows) * size, "base": size, "adapters": model.status()["nbytes"]}


def _result(row: dict, slug: str) -> dict:
    return next(result for result in row["adapters"] if result["adapter"] == slug)


def _mean(rows: list[dict]) -> dict:
    """Of the accuracies over tasks, and of each adapter's figures."""
    mean = lambda values: sum(values) / len(rows)  # noqa: E731
    columns = ("bytes", "amr", "accuracy", "adr", "agreement", "kl")
    return {
        "accuracy_finetuned": mean([row["accuracy_finetuned"] for row in rows]),
        "accuracy_base": mean([row["accuracy_base"] for row in rows]),
        "adapters": [
            {"adapter": size.slug, "method": size.method, "size": size.label}
            | {column: mean([_result(row, size.slug)[column] for row in rows]) for column in columns}
            for size in SIZES
        ],
    }


# ---- helpers ---------------------------------------------------------------------------------------------------


def _quiet() -> None:
    """The demo shows its own progress: transformers' bars and its news of a new head would come between."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


@contextmanager
def _bar(console: Console, title: str) -> Iterator[Callable]:
    """Yields ``step(done, total, note)``: a bar with the time left on a terminal, now and then a line elsewhere."""
    if not console.is_terminal:
        yield _lines(console, title)
        return
    columns = (
        TextColumn("  {task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", style="dim", markup=False),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(title, total=None, note="")
        yield lambda done, total, note="": progress.update(task, completed=done, total=total, note=note)


def _lines(console: Console, title: str) -> Callable:
    start = last = time.monotonic()

    def step(done: int, total: int, note: str = ""):
        nonlocal last
        now = time.monotonic()
        if now - last >= LINE_SECONDS and done:
            last = now
            left = (now - start) / done * (total - done)
            console.print(f"  {title}: {100 * done / total:.0f} %, {left:.0f} s left, {note}", soft_wrap=True)

    return step
