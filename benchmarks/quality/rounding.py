"""What rounding biases, norms and heads to few bits costs by itself, on the demo's fine-tunes of MiniLM.

    python -m benchmarks.quality.rounding [--texts 500] [TASK...]

Prints a line a task and rounding: KL to the fine-tune and the share of equal answers, everything else being exact.  The
fine-tunes are those that `dts demo` keeps; one that is missing is made.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor

from dts import metrics
from dts.adapter.grid import rounded_to
from dts.adapter.vectors import is_head, is_vector
from dts.checkpoint import open_checkpoint, pair
from dts.demo.evaluate import load_finetuned, logits
from dts.demo.finetune import base_folder, finetune
from dts.demo.run import RECIPE
from dts.demo.tasks import demo_tasks

VECTORS, HEADS = (8, 4, 3), (8, 4)


def roundings(folder) -> dict[str, dict[str, Tensor]]:
    """Label -> the fine-tune's tensors that are others then, by name."""
    pairing = pair(open_checkpoint(base_folder()), open_checkpoint(folder))
    tuned, found = pairing.finetuned, dict[str, dict[str, Tensor]]()
    for one in pairing.pairs.values():
        value, own = tuned.load(one.name), one.base_name is None
        before = torch.zeros_like(value) if one.base_name is None else pairing.base.load(one.base_name)
        for what, fits, choices in (("vectors", is_vector, VECTORS), ("head", is_head, HEADS)):
            for bits in choices if fits(tuple(value.shape), value.dtype, own) else ():
                grid = rounded_to(value - before, bits)
                if grid is not None:
                    found.setdefault(f"{what} {bits} bits", {})[one.name] = before + grid.values()
    return found


@torch.no_grad()
def measure(task, texts: int) -> None:
    folder = finetune(task, RECIPE)
    model, tokenizer = load_finetuned(folder)
    chosen = task.split("test")[0]
    chosen = chosen[:: max(1, len(chosen) // texts)]
    reference, state = logits(model, tokenizer, chosen), model.state_dict()
    for label, tensors in roundings(folder).items():
        kept = {name: state[name].clone() for name in tensors}
        for name, value in tensors.items():
            state[name].copy_(value)
        other = logits(model, tokenizer, chosen)
        for name, value in kept.items():
            state[name].copy_(value)
        kl = metrics.kl(other.double(), reference.double())
        print(f"{task.name}, {label}: KL {kl:.2g}, agreement {metrics.agreement(other, reference):.4f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tasks", nargs="*", help="names of the demo's tasks; default all")
    parser.add_argument("--texts", type=int, default=500, help="of the test split, evenly")
    args = parser.parse_args()
    for task in demo_tasks():
        if not args.tasks or task.name in args.tasks:
            measure(task, args.texts)


if __name__ == "__main__":
    main()
