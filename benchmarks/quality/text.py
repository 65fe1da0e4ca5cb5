"""Text: MiniLM-L6, fully fine-tuned on real classification tasks of ../shared/data/text.

    python -m benchmarks.quality.text                the suite: every method, size and task
    python -m benchmarks.quality.text --quick        three tasks, few methods and sizes, in minutes
    python -m benchmarks.quality.text --check        TREC and SST-2: `residual` at 0.6 % beats `paper` at 2.8 %
    python -m benchmarks.quality.text --finetune     only the fine-tunes, into the cache

Sizes are shares of the 37 matrices of encoder and pooler in fp32.  The fine-tunes leave the embeddings as they are;
biases, norms and heads stay exact for every method.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

from benchmarks.quality import report
from benchmarks.quality.suite import METHODS, Subject, measure, summary
from dts.demo import evaluate
from dts.demo.finetune import Recipe, base_folder, finetune
from dts.demo.tasks import Task, folder_tasks

# (training samples at most, epochs): about equal work for each task, more where there are many classes
TRAINING = {
    "trec6": (2500, 3), "sst2": (2500, 3), "snips": (2500, 3), "tweet_emotion": (2500, 3), "cr": (2500, 3),
    "stackoverflow20": (2500, 3), "mrpc": (2500, 3), "sms_spam": (2500, 2), "atis": (2500, 4), "agnews": (2500, 2),
    "banking77": (4000, 4), "hwu64": (4000, 3), "cola": (2500, 3), "tweet_irony": (2500, 3), "sick_e": (2500, 3),
    "clinc150": (6000, 4),
}  # fmt: skip
SUITE = list(TRAINING)[:12]
QUICK_TASKS, QUICK_METHODS, QUICK_SIZES = (
    ["trec6", "sst2", "cr"],
    ["residual", "dts paper", "drop 4 bit"],
    [0.006, 0.028],
)
TEST_SAMPLES = 1000  # at most, of a task
CACHE = Path(__file__).resolve().parents[2] / ".cache" / "quality"


def data_folder() -> Path:
    """`../shared/data/text` beside the project."""
    return Path(__file__).resolve().parents[3] / "shared" / "data" / "text"


def finetunes(names: list[str], seeds: list[int]) -> list[tuple[Task, int, Path]]:
    """(task, seed, checkpoint) of every task and seed, trained or found in the cache.  A task's seeds differ in
    everything but data: the head's first values, the order of batches and dropout."""
    found = []
    for seed in seeds:
        for task in folder_tasks(data_folder(), names):
            samples, epochs = TRAINING[task.name]
            task = task.shortened(samples)
            path = finetune(task, Recipe(epochs=epochs, seed=seed), cache=CACHE)
            found.append((task, seed, path))
            print(f"{task.name}, seed {seed}: {path.name}", file=sys.stderr, flush=True)
    return found


def subject(task: Task, seed: int, folder: Path, samples: int = TEST_SAMPLES) -> Subject:
    """The fine-tune in `folder`, measured on up to `samples` of its test set, spread evenly over it."""
    base = load_file(base_folder() / "model.safetensors")
    finetuned = load_file(folder / "model.safetensors")
    model, tokenizer = evaluate.load_finetuned(folder)
    texts, labels = task.split("test")
    step = max(1, -(-len(texts) // samples))
    texts, labels = texts[::step], torch.tensor(labels[::step])
    bases = {f"bert.{name}": tensor for name, tensor in base.items()}
    deltas = {
        name: tensor - bases[name]
        for name, tensor in finetuned.items()
        if name in bases and tensor.dim() == 2 and not torch.equal(tensor, bases[name])
    }

    def forward(deltas):
        evaluate.with_tensors(model, {name: bases[name] + delta for name, delta in deltas.items()})
        return evaluate.logits(model, tokenizer, texts)

    return Subject(task.name, seed, folder.name, deltas, forward, labels)


def check(subjects: list[Subject]) -> bool:
    """Whether, on each of TREC and SST-2, `residual` at 0.6 % has a lower KL than `paper` at 2.8 %."""
    rows = measure("text", subjects, CACHE / "text.jsonl", ["residual"], [0.006])
    rows += measure("text", subjects, CACHE / "text.jsonl", ["dts paper"], [0.028])
    passed = True
    for one in subjects:
        ours, paper = (row for row in rows if row["task"] == one.task)
        passed &= ours["kl"] < paper["kl"] and ours["share"] <= 0.006
        print(f"{one.task}: KL {ours['kl']:.5f} at {100 * ours['share']:.3f} %, "
              f"paper {paper['kl']:.5f} at {100 * paper['share']:.3f} %")  # fmt: skip
    print("passed" if passed else "FAILED")
    return passed


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--finetune", action="store_true")
    parser.add_argument("--tasks", default="", help="names, by commas")
    parser.add_argument("--methods", default="", help="names, by commas")
    parser.add_argument("--sizes", default="", help="shares of fp32, by commas")
    parser.add_argument("--seeds", default="0", help="of the fine-tunes, by commas")
    parser.add_argument("--draws", default="0", help="of the methods' randomness, by commas")
    parser.add_argument("--out", type=Path, default=CACHE / "report")
    options = parser.parse_args(arguments)
    split = lambda text, of=str: [of(part) for part in text.split(",") if part]  # noqa: E731

    tasks = ["trec6", "sst2"] if options.check else QUICK_TASKS if options.quick else SUITE
    trained = finetunes(split(options.tasks) or tasks, split(options.seeds, int))
    if options.finetune:
        return 0
    subjects = [subject(*one, samples=300 if options.quick else TEST_SAMPLES) for one in trained]
    if options.check:
        return 0 if check(subjects) else 1
    methods = split(options.methods) or (QUICK_METHODS if options.quick else list(METHODS))
    sizes = split(options.sizes, float) or (QUICK_SIZES if options.quick else None)
    rows = measure("text", subjects, CACHE / "text.jsonl", methods, sizes, split(options.draws, int))
    report.write(options.out, "text", summary(rows), rows)
    print(f"report: {options.out / 'index.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
