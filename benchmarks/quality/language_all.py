"""Language, all parameters trained: SmolLM2-135M as people fine-tune it, embeddings and all, weight decay on all
matrices.

    python -m benchmarks.quality.language_all              the suite: few methods and sizes
    python -m benchmarks.quality.language_all --quick      one task, in minutes
    python -m benchmarks.quality.language_all --finetune   only the fine-tunes, into the cache

The embeddings, 28 M of 135 M parameters, are the output layer too: a method's error in them is an error in both.

Sizes are shares of all 211 matrices in fp32, the embeddings once, which every method compresses; norms stay exact for
every method, and there are no biases.  Nothing was chosen on fine-tunes made so; on those with frozen embeddings, of
seed 0, the sketch's shape was chosen on gsm8k and mbpp.
"""

from __future__ import annotations

import sys
from functools import partial

from benchmarks.quality import language
from benchmarks.quality.command import Suite, run

COMMAND = Suite(
    "language all",
    ["gsm8k", "mbpp"],
    language.TRAINING,
    partial(language.finetunes, every=True),
    language.subject,
    methods=["sketch", "residual", "svd 4 bit", "drop 4 bit"],
    sizes=[0.0025, 0.01],
    samples=40,
    quick_tasks=["gsm8k"],
    quick_methods=("sketch", "drop 4 bit"),
    quick_sizes=(0.0025,),
    quick_samples=10,
    command="language_all",
)

if __name__ == "__main__":
    sys.exit(run(COMMAND, __doc__))
