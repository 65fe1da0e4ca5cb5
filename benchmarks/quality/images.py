"""Images: six blocks of DINOv2 ViT-S/14 on 56x56 pixels, fully fine-tuned on real tasks of ../shared/data/images.

    python -m benchmarks.quality.images              the suite: every method, size and task
    python -m benchmarks.quality.images --quick      three tasks, few methods and sizes, in minutes
    python -m benchmarks.quality.images --finetune   only the fine-tunes, into the cache

Sizes are shares of the 37 matrices (six a block, and the patch projection) in fp32.  Everything is trained; biases,
norms, position embeddings and heads stay exact for every method.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from benchmarks.quality import dinov2, image_tasks
from benchmarks.quality.command import CACHE, Suite, run
from benchmarks.quality.image_tasks import ImageTask
from benchmarks.quality.suite import Classifier, matrix_deltas
from dts.demo import evaluate
from dts.demo.finetune import Recipe

TRAINING = {  # epochs over at most SAMPLES training images: more where there are few
    "gtsrb": 3,
    "cifar10": 3,
    "dtd10": 8,
    "mnist": 3,
    "fashion_mnist": 3,
    "fer2013": 3,
    "intel_scenes": 3,
    "medical_mnist": 2,
    "sign_digits": 4,
    "flowers5": 3,
}
SAMPLES = 2000
UNSEEN = ["flowers5"]


def finetunes(names: list[str], seeds: list[int]) -> list[tuple[ImageTask, int, Path]]:
    """(task, seed, checkpoint) of every task and seed, trained or found in the cache.  A task's seeds differ in the
    head's first values and the order of batches."""
    base, found = dinov2.base_folder(CACHE), []
    for seed in seeds:
        for name in names:
            task = image_tasks.load(name, dinov2.SIZE, SAMPLES)
            recipe = Recipe(epochs=TRAINING[name], seed=seed, train_embeddings=True)
            path = dinov2.finetune(task, recipe, base, CACHE)
            found.append((task, seed, path))
            print(f"{name}, seed {seed}: {path.name}", file=sys.stderr, flush=True)
    return found


def subject(task: ImageTask, seed: int, folder: Path, samples: int = 400) -> Classifier:
    """The fine-tune in `folder`, measured on up to `samples` of its test set, spread evenly over it."""
    from transformers import Dinov2ForImageClassification, Dinov2Model

    # names as the models have them: files keep those of older releases of transformers
    base = Dinov2Model.from_pretrained(dinov2.base_folder(CACHE), dtype=torch.float32)
    model = Dinov2ForImageClassification.from_pretrained(folder, dtype=torch.float32).eval()
    bases = {f"dinov2.{name}": tensor for name, tensor in base.state_dict().items()}
    deltas = matrix_deltas(bases, model.state_dict())
    images, labels = task.test
    step = max(1, -(-len(labels) // samples))
    images, labels = images[::step], labels[::step]

    def forward(deltas):
        evaluate.with_tensors(model, {n: bases[n] + delta.view_as(bases[n]) for n, delta in deltas.items()})
        with torch.inference_mode():
            return torch.cat([model(image_tasks.pixels(batch)).logits for batch in images.split(100)])

    return Classifier(task.name, seed, folder.name, deltas, forward, labels)


COMMAND = Suite(
    "images",
    [name for name in TRAINING if name not in UNSEEN],
    TRAINING,
    finetunes,
    subject,
    quick_tasks=["gtsrb", "cifar10", "dtd10"],
)

if __name__ == "__main__":
    sys.exit(run(COMMAND, __doc__))
