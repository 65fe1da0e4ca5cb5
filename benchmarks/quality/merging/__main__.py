"""Merged bases, difference adapters, tasks never seen, and no task id: MiniLM-L6 on the text suite's fine-tunes.

    python -m benchmarks.quality.merging              all four parts on the cached fine-tunes of the text suite
    python -m benchmarks.quality.merging --quick      three tasks, few methods, small test sets
    python -m benchmarks.quality.merging --parts routing,unseen --seeds 0,1,2
    python -m benchmarks.quality.merging --results benchmarks/results/merging/minilm.json     tables, nothing measured

bases      accuracy of each merging method alone, every task with its own head
adapters   DTS-T (on the pretrained base) and DTS-D (on merged bases) at equal bytes a task
unseen     the encoder of three held-out tasks made from the other tasks' adapters, under the held-out tasks' own heads;
           against the merged models and the best single task, and zero-shot by similarity to class names
routing    which task a text is of: energy router, unlabelled examples with and without energies beside them, nearest
           class name, probe on 50 samples a task; accuracy lost to it

Every measured row goes to a file of JSON lines and is not measured again.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from benchmarks.quality.command import hush, list_of, make_place
from benchmarks.quality.merging import bases, routing, unseen
from benchmarks.quality.merging.study import METHODS, Rows, Study
from benchmarks.quality.merging.tables import tables
from benchmarks.quality.merging.tested import Tested
from benchmarks.quality.text import CACHE, SUITE, TRAINING, finetunes
from dts.demo.tasks import MissingData
from dts.files import write_text

PARTS = ("bases", "adapters", "unseen", "routing")
BUDGETS = (0.0025, 0.005, 0.01)
QUICK_METHODS, QUICK_TASKS = ("average", "ties", "tsv_merge"), ["trec6", "sst2", "snips"]
ROWS = CACHE / "merging.jsonl"


def main(arguments: list[str] | None = None) -> int:
    """The exit code: 0 done, 2 wrong options, or data or packages missing."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.results:
        print(tables(json.loads(options.results.read_text())))
        return 0
    tasks = options.tasks or (QUICK_TASKS if options.quick else SUITE)
    methods = options.methods or list(QUICK_METHODS if options.quick else METHODS)
    for what, asked, known in (("part", options.parts, PARTS), ("task", tasks, TRAINING), ("method", methods, METHODS)):
        if unknown := [name for name in asked if name not in known]:
            parser.error(f"no {what} {', '.join(unknown)}; there are {', '.join(known)}")
    make_place(parser, options.out)
    hush()
    rows, known = [], Rows(ROWS)
    try:
        for seed in options.seeds:
            rows += _measure(options, seed, tasks, methods, known)
    except MissingData as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2
    save(rows, options.out)
    print(tables(rows))
    print(f"\nrows: {options.out}")
    return 0


def _measure(options, seed: int, tasks: list[str], methods: list[str], known: Rows) -> list[dict]:
    samples = options.samples or (100 if options.quick else 500)
    tested = [Tested(task, folder, samples) for task, _, folder in finetunes(tasks, [seed])]
    study = Study(tested, seed, known, methods)
    rows = []
    if "bases" in options.parts:
        rows += bases.merged_models(study)
    if "adapters" in options.parts:
        rows += bases.adapters(study, options.budgets or ((0.01,) if options.quick else BUDGETS))
    if "unseen" in options.parts:
        rows += unseen.held_out(study, options.budget)
    if "routing" in options.parts:
        rows += routing.routing(study, options.budget)
    return rows


def save(rows: list[dict], path: Path) -> None:
    """A line a row, numbers to 5 digits, so that a change is a readable difference."""
    short = lambda v: (  # noqa: E731
        float(f"{v:.5g}") if isinstance(v, float) else {k: short(x) for k, x in v.items()} if isinstance(v, dict) else v
    )
    lines = [json.dumps({k: short(v) for k, v in row.items() if k != "key"}) for row in rows]
    write_text(path, "[\n" + ",\n".join(lines) + "\n]\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.quality.merging",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--parts", type=list_of(str), default=list(PARTS), help="of " + ", ".join(PARTS))
    parser.add_argument("--tasks", type=list_of(str), default=[], help="names, by commas")
    parser.add_argument("--methods", type=list_of(str), default=[], help="merging methods, by commas")
    parser.add_argument("--seeds", type=list_of(int), default=[0], help="of the fine-tunes, by commas")
    parser.add_argument("--budgets", type=list_of(float), default=[], help="of the part adapters, shares of fp32")
    parser.add_argument("--budget", type=float, default=0.01, help="of adapters in the parts unseen and routing")
    parser.add_argument("--samples", type=int, default=0, help="test texts a task, at most")
    parser.add_argument("--out", type=Path, default=CACHE / "merging.json", help="file of the rows")
    parser.add_argument("--results", type=Path, help="the tables of such a file; nothing is measured")
    return parser


if __name__ == "__main__":
    sys.exit(main())
