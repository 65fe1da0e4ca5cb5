"""Text: MiniLM-L6, fully fine-tuned on real classification tasks of ../shared/data/text.

    python -m benchmarks.quality.text                the suite: every method, size and task
    python -m benchmarks.quality.text --quick        three tasks, few methods and sizes, in minutes
    python -m benchmarks.quality.text --check        TREC and SST-2: `residual` at 0.6 % beats `paper` at 2.8 %
    python -m benchmarks.quality.text --finetune     only the fine-tunes, into the cache

Sizes are shares of the 37 matrices of encoder and pooler in fp32.  The fine-tunes leave the embeddings as they are;
biases, norms and heads stay exact for every method.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

from benchmarks.quality.command import CACHE, Suite, run
from benchmarks.quality.suite import Classifier, Subject, matrix_deltas, measure
from dts.demo import evaluate
from dts.demo.finetune import Recipe, base_folder, finetune
from dts.demo.tasks import Task, folder_tasks

# (training samples at most, epochs): about equal work for each task, more where there are many classes
TRAINING = {
    "trec6": (2500, 3),
    "sst2": (2500, 3),
    "snips": (2500, 3),
    "tweet_emotion": (2500, 3),
    "cr": (2500, 3),
    "stackoverflow20": (2500, 3),
    "mrpc": (2500, 3),
    "sms_spam": (2500, 2),
    "atis": (2500, 4),
    "agnews": (2500, 2),
    "banking77": (4000, 4),
    "hwu64": (4000, 3),
    "cola": (2500, 3),
    "tweet_irony": (2500, 3),
    "sick_e": (2500, 3),
    "clinc150": (6000, 4),
}
SUITE = list(TRAINING)[:12]


def data_folder() -> Path:
    """`../shared/data/text` beside the project."""
    return Path(__file__).resolve().parents[3] / "shared" / "data" / "text"


def finetunes(names: list[str], seeds: list[int], every: bool = False) -> list[tuple[Task, int, Path]]:
    """(task, seed, checkpoint) of every task and seed, trained or found in the cache.  A task's seeds differ in
    everything but data: the head's first values, the order of batches and dropout.

    every: all parameters are trained and all matrices decayed, embeddings too.
    """
    found = []
    for seed in seeds:
        for task in folder_tasks(data_folder(), names):
            samples, epochs = TRAINING[task.name]
            task = task.shortened(samples)
            recipe = Recipe(epochs=epochs, seed=seed, train_embeddings=every, decay_embeddings=every)
            path = finetune(task, recipe, cache=CACHE)
            found.append((task, seed, path))
            print(f"{task.name}, seed {seed}: {path.name}", file=sys.stderr, flush=True)
    return found


def subject(task: Task, seed: int, folder: Path, samples: int = 400) -> Classifier:
    """The fine-tune in `folder`, measured on up to `samples` of its test set, spread evenly over it."""
    model, tokenizer = evaluate.load_finetuned(folder)
    bases = {f"bert.{name}": tensor for name, tensor in load_file(base_folder() / "model.safetensors").items()}
    deltas = matrix_deltas(bases, model.state_dict())
    texts, labels = task.split("test")
    step = max(1, -(-len(texts) // samples))
    texts, labels = texts[::step], torch.tensor(labels[::step])

    def forward(deltas):
        evaluate.with_tensors(model, {name: bases[name] + delta for name, delta in deltas.items()})
        return evaluate.logits(model, tokenizer, texts)

    return Classifier(task.name, seed, folder.name, deltas, forward, labels)


def check(subjects: list[Subject]) -> bool:
    """Whether, on each of TREC and SST-2, `residual` at 0.6 % has a lower KL than `paper` at 2.8 %."""
    rows = measure("text", subjects, CACHE / "text.jsonl", ["residual"], [0.006])
    rows += measure("text", subjects, CACHE / "text.jsonl", ["dts paper"], [0.028])
    passed = True
    for one in subjects:
        ours, paper = (row for row in rows if row["task"] == one.task)
        passed &= ours["kl"] < paper["kl"] and ours["share"] <= 0.006
        print(
            f"{one.task}: KL {ours['kl']:.5f} at {100 * ours['share']:.3f} %, "
            f"paper {paper['kl']:.5f} at {100 * paper['share']:.3f} %"
        )
    print("passed" if passed else "FAILED")
    return passed


COMMAND = Suite(
    "text",
    SUITE,
    TRAINING,
    finetunes,
    subject,
    quick_tasks=["trec6", "sst2", "cr"],
    check=check,
    check_tasks=["trec6", "sst2"],
)

if __name__ == "__main__":
    sys.exit(run(COMMAND, __doc__))
