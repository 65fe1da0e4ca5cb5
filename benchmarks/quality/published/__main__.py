"""The benchmarks of the papers on merging, from the hub: needs a network, `datasets`, and for CLIP `fusion-bench`.

    python -m benchmarks.quality.published clip-b32-8      CLIP ViT-B/32 on 8 vision tasks; -14 and -20, clip-l14-...
    python -m benchmarks.quality.published gpt2-glue       GPT-2 on the classification tasks of GLUE; roberta-glue
    python -m benchmarks.quality.published clip-b32-8 --quick       three tasks, 300 images each
    python -m benchmarks.quality.published clip-b32-8 --finetune    only downloads the data

Whole test sets (GLUE: validation sets, as the tests' labels are hidden); a GPU is used where there is one.  Sizes are
shares of the matrices in fp32: 2.46 % is the published rank fraction of 0.3 at 2 bits (3.68 % as its paper counts).
"""

from __future__ import annotations

import sys
from functools import cache

import torch

from benchmarks.quality.command import Suite, run
from benchmarks.quality.published import hub
from benchmarks.quality.published.clip import Clip, ClipTask
from benchmarks.quality.published.glue import Glue, GlueTask
from benchmarks.quality.published.hub import Checkpoint

METHODS = [
    "residual",
    "dts paper",
    "svd fp16",
    "drop 4 bit",
    "ultradelta",
    "bitdelta",
    "tsv-compress",
    "emr",
    "tall-mask",
]
SIZES = [0.0025, 0.005, 0.01, 0.0246]
ALL = 10**9  # samples


def clip_suite(name: str, base: Checkpoint, finetuned: dict[str, Checkpoint], tasks: list[str]) -> Suite:
    """CLIP on vision tasks; `finetuned`: the checkpoint of every task."""
    return _suite(
        name,
        finetuned,
        tasks,
        ["mnist", "dtd", "eurosat"],
        cache(lambda: Clip(base, _device())),
        lambda task: ClipTask(
            task, hub.VISION[task], hub.load_rows(hub.VISION[task]), hub.prompts(hub.VISION[task].prompts)
        ),
    )


def glue_suite(name: str, base: Checkpoint, finetuned: dict[str, Checkpoint], tasks: list[str]) -> Suite:
    """A language model on GLUE; `finetuned`: the checkpoint of every task."""
    return _suite(
        name,
        finetuned,
        tasks,
        ["sst2", "mrpc", "rte"],
        cache(lambda: Glue(base, _device())),
        lambda task: GlueTask(task, hub.GLUE[task], hub.load_rows(hub.GLUE[task])),
    )


def _suite(name, finetuned, tasks, quick_tasks, model, load) -> Suite:
    """model(): what makes subjects, loaded once; load(task): the task with its data."""
    return Suite(
        name,
        tasks,
        finetuned,
        # one fine-tune a task is published, whatever seeds are asked for
        lambda names, seeds: [(load(task), 0, finetuned[task]) for task in names],
        lambda *arguments: model().subject(*arguments),
        command=f"published {name}",
        methods=METHODS,
        sizes=SIZES,
        samples=ALL,
        quick_tasks=quick_tasks,
    )


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def suites() -> dict[str, Suite]:
    """Every published benchmark by name."""
    found = {}
    for size in hub.CLIP:
        for number in (8, 14, 20):
            name = f"clip-{size}-{number}"
            found[name] = clip_suite(name, *hub.clip_checkpoints(size), list(hub.VISION)[:number])
    for model, checkpoints in (("gpt2", hub.gpt2_checkpoints()), ("roberta", hub.roberta_checkpoints())):
        found[f"{model}-glue"] = glue_suite(f"{model}-glue", *checkpoints, list(hub.GLUE))
    return found


def main(arguments: list[str]) -> int:
    """The exit code; 2 without the name of a benchmark."""
    known = suites()
    if not arguments or arguments[0] not in known:
        print(__doc__, f"\nbenchmarks: {', '.join(known)}", file=sys.stderr)
        return 0 if arguments[:1] in (["-h"], ["--help"]) else 2
    return run(known[arguments[0]], __doc__, arguments[1:])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
