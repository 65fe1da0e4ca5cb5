"""The command of a suite: its options, and fine-tunes -> subjects -> rows -> report."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.quality import report
from benchmarks.quality.suite import METHODS, Subject, measure, summary
from dts.demo.tasks import MissingData
from dts.files.errors import reason

CACHE = Path(__file__).resolve().parents[2] / ".cache" / "quality"


@dataclass(frozen=True)
class Suite:
    """What one suite measures, by default and with --quick.

    finetunes(names, seeds): (task, seed, checkpoint) of every task and seed, trained, downloaded or cached;
    subject(task, seed, checkpoint, samples): one of them, measured on at most `samples` test samples;
    check(subjects): whether the suite's promise holds, on the fine-tunes of `check_tasks`.
    """

    name: str
    tasks: list[str]
    known_tasks: Collection[str]
    finetunes: Callable[[list[str], list[int]], list[tuple[Any, int, Any]]]
    subject: Callable[[Any, int, Any, int], Subject]
    methods: list[str] = field(default_factory=lambda: list(METHODS))
    sizes: list[float] | None = None  # None: each method's own
    samples: int = 400
    quick_tasks: list[str] = field(default_factory=list)
    quick_methods: tuple[str, ...] = ("residual", "dts paper", "drop 4 bit")
    quick_sizes: tuple[float, ...] = (0.006, 0.028)
    quick_samples: int = 300
    command: str = ""  # after `python -m benchmarks.quality.`; its name where empty
    check: Callable[[list[Subject]], bool] | None = None
    check_tasks: list[str] = field(default_factory=list)

    @property
    def rows(self) -> Path:
        """The file of measured rows."""
        return CACHE / f"{self.name}.jsonl"


def run(suite: Suite, description: str, arguments: list[str] | None = None) -> int:
    """The exit code of the command: 0 done, 1 its check failed, 2 wrong options, or data or packages missing."""
    parser = _parser(suite, description)
    options = parser.parse_args(arguments)
    checking, quick = getattr(options, "check", False), options.quick
    tasks = options.tasks or (suite.check_tasks if checking else suite.quick_tasks if quick else suite.tasks)
    for what, asked, known in (("task", tasks, suite.known_tasks), ("method", options.methods, METHODS)):
        unknown = [name for name in asked if name not in known]
        if unknown:
            parser.error(f"no {what} {', '.join(unknown)}; there are {', '.join(known)}")
    hush()
    try:
        trained = suite.finetunes(tasks, options.seeds)
    except MissingData as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2
    if options.finetune:
        return 0
    samples = options.samples or (suite.quick_samples if quick else suite.samples)
    subjects = [suite.subject(*one, samples) for one in trained]
    if checking:
        return 0 if suite.check(subjects) else 1
    methods = options.methods or (suite.quick_methods if quick else suite.methods)
    sizes = options.sizes or (suite.quick_sizes if quick else suite.sizes)
    rows = measure(suite.name, subjects, suite.rows, methods, sizes, options.draws)
    report.write(options.out, suite.name, summary(rows), rows)
    print(f"report: {options.out / 'index.html'}")
    return 0


def hush() -> None:
    """No progress bars and reports of transformers between the suite's own lines."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def make_place(parser: argparse.ArgumentParser, out: Path | None) -> None:
    """Before long work: the folder that the file ``out`` is put in.  Ends the command where ``out`` can be no file."""
    if out is None:
        return
    if out.is_dir():
        parser.error(f"--out {out} is a folder: name a file in it")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"--out {out}: {reason(error, out.parent)}")


def _parser(suite: Suite, description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks.quality.{suite.command or suite.name}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true")
    if suite.check:
        parser.add_argument("--check", action="store_true")
    parser.add_argument("--finetune", action="store_true")
    parser.add_argument("--tasks", type=list_of(str), default=[], help="names, by commas")
    parser.add_argument("--methods", type=list_of(str), default=[], help="names, by commas")
    parser.add_argument("--sizes", type=list_of(float), default=[], help="shares of fp32, by commas")
    parser.add_argument("--seeds", type=list_of(int), default=[0], help="of the fine-tunes, by commas")
    parser.add_argument("--draws", type=list_of(int), default=[0], help="of the methods' randomness, by commas")
    parser.add_argument("--samples", type=number_of_samples, help="of a task's test set, at most; evenly over it")
    parser.add_argument("--out", type=Path, default=CACHE / "report")
    return parser


def number_of_samples(text: str) -> int:
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is too few: 1 or more")
    return int(text)


def list_of(of: type) -> Callable[[str], list]:
    def values(text: str) -> list:
        return [of(part) for part in text.split(",") if part]

    values.__name__ = f"list of {of.__name__}"  # argparse names it in its errors
    return values
