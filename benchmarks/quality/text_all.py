"""Text, all parameters trained: MiniLM-L6 as people fine-tune it, embeddings and all, weight decay on all matrices.

    python -m benchmarks.quality.text_all                the suite: every method and size, on the tasks to report on
    python -m benchmarks.quality.text_all --quick        few methods and sizes, in minutes
    python -m benchmarks.quality.text_all --finetune     only the fine-tunes, into the cache

Of these fine-tunes choices were made on `CHOSEN_ON` alone; the figures that are reported are of `TASKS`, the last three
of which were taken because they train fast, before anything was measured on them.  (Of fine-tunes whose embeddings are
frozen, some choices were made on cr, atis, stackoverflow20 and banking77: FINDINGS.md.)

Sizes are shares of all matrices in fp32, embeddings included, which every method compresses; biases, norms and heads
stay exact for every method.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

from benchmarks.quality import text
from benchmarks.quality.command import Suite, run
from benchmarks.quality.suite import Classifier
from dts.demo.tasks import Task
from dts.shapes import SMALL

CHOSEN_ON = ["sst2", "agnews", "trec6"]
TASKS = ["sick_e", "stackoverflow20", "banking77", "cr", "atis", "sms_spam"]


def subject(task: Task, seed: int, folder: Path, samples: int = 400) -> Classifier:
    """As `text.subject`, but for tables of very few rows, which count as vectors."""
    found = text.subject(task, seed, folder, samples)
    found.deltas = {name: delta for name, delta in found.deltas.items() if min(delta.shape) > SMALL}
    return found


COMMAND = Suite(
    "text all",
    TASKS,
    text.TRAINING,
    partial(text.finetunes, every=True),
    subject,
    quick_tasks=["sick_e"],
    quick_methods=("residual", "sketch", "svd 4 bit", "drop 4 bit"),
    command="text_all",
)

if __name__ == "__main__":
    sys.exit(run(COMMAND, __doc__))
