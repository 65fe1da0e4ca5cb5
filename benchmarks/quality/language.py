"""Language: SmolLM2-135M, all blocks fine-tuned on mathematics, code and Shakespeare of ../shared/data/lm.

    python -m benchmarks.quality.language              the suite: few methods and sizes, as 106 M parameters take long
    python -m benchmarks.quality.language --quick      one task, in minutes
    python -m benchmarks.quality.language --finetune   only the fine-tunes, into the cache

Measured a predicted token of held-out text: KL to the fine-tune, agreement of the likeliest token with the fine-tune's,
accuracy of the likeliest token, and loss.  Sizes are shares of the 210 matrices of the blocks in fp32; norms stay exact
for every method, embeddings are the base's.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.quality import language_tasks, smollm2
from benchmarks.quality.command import CACHE, Suite, run
from benchmarks.quality.language_tasks import LanguageTask
from benchmarks.quality.peers import Deltas
from benchmarks.quality.suite import Subject, matrix_deltas
from dts.demo import evaluate
from dts.demo.finetune import Recipe

TRAINING = {"gsm8k": (56_000, 1), "mbpp": (28_000, 2), "tinyshakespeare": (56_000, 1)}  # tokens at most, epochs
LENGTH = 128  # tokens of a sequence


def finetunes(names: list[str], seeds: list[int], every: bool = False) -> list[tuple[LanguageTask, int, Path]]:
    """(task, seed, checkpoint) of every task and seed, trained or found in the cache.  A task's seeds differ in the
    order of batches.

    every: all parameters are trained and all matrices decayed, the embeddings too.
    """
    from transformers import AutoTokenizer

    base, found = smollm2.base_folder(CACHE), []
    tokenizer = AutoTokenizer.from_pretrained(base)
    for seed in seeds:
        for name in names:
            tokens, epochs = TRAINING[name]
            task = language_tasks.load(name, tokenizer, LENGTH, tokens)
            recipe = Recipe(
                epochs=epochs,
                batch_size=4,
                max_length=LENGTH,
                train_embeddings=every,
                seed=seed,
                decay_embeddings=every,
            )
            path = smollm2.finetune(task, recipe, base, CACHE)
            found.append((task, seed, path))
            print(f"{name}, seed {seed}: {path.name}", file=sys.stderr, flush=True)
    return found


@dataclass
class LanguageModel(Subject):
    """A fine-tuned causal model, and its held-out token ids int64 [sequences, length].

    bases: the base's tensors by the names of the model's.  Logits over the vocabulary exist for one batch at a time:
    of the fine-tune the last hidden states are kept, and the output layer that turns them into logits.  That is the
    fine-tune's own: where it is the embeddings, deltas of those change the model's.
    """

    model: torch.nn.Module
    bases: Deltas
    sequences: Tensor
    batch_size: int = 4

    @property
    def samples(self) -> int:
        return self.sequences[:, 1:].numel()

    def score(self, deltas: Deltas) -> dict:
        right = finetuned_right = agreeing = loss = finetuned_loss = kl = 0.0
        head, (finetuned_head, reference) = self.model.get_output_embeddings(), self.reference
        for (hidden, targets), finetuned_hidden in zip(self._hidden(deltas), reference):
            with torch.inference_mode():
                logs, wanted = torch.log_softmax(head(hidden), -1), finetuned_head(finetuned_hidden).log_softmax(-1)
                best, wanted_best = logs.argmax(-1), wanted.argmax(-1)
                right += (best == targets).sum().item()
                finetuned_right += (wanted_best == targets).sum().item()
                agreeing += (best == wanted_best).sum().item()
                loss += torch.nn.functional.nll_loss(logs, targets, reduction="sum").item()
                finetuned_loss += torch.nn.functional.nll_loss(wanted, targets, reduction="sum").item()
                kl += torch.nn.functional.kl_div(logs, wanted, reduction="sum", log_target=True).item()
        sums = {
            "accuracy": right,
            "finetuned_accuracy": finetuned_right,
            "agreement": agreeing,
            "kl": kl,
            "loss": loss,
            "finetuned_loss": finetuned_loss,
        }
        return {name: value / self.samples for name, value in sums.items()} | {"base_loss": self.base_loss}

    @cached_property
    def reference(self) -> tuple[torch.nn.Module, list[Tensor]]:
        """The fine-tune's output layer, and its last hidden states, [tokens of a batch, width] each."""
        hidden = [hidden for hidden, _ in self._hidden(self.deltas)]
        return copy.deepcopy(self.model.get_output_embeddings()), hidden

    @cached_property
    def base_loss(self) -> float:
        """Nats a token of the base, under the fine-tune's norms."""
        head, total = self.model.get_output_embeddings(), 0.0
        for hidden, targets in self._hidden({name: torch.zeros_like(d) for name, d in self.deltas.items()}):
            with torch.inference_mode():
                total += torch.nn.functional.cross_entropy(head(hidden), targets, reduction="sum").item()
        return total / self.samples

    def _hidden(self, deltas: Deltas) -> Iterator[tuple[Tensor, Tensor]]:
        """Of each batch: last hidden states [tokens, width] with `deltas`, and the tokens that follow [tokens]."""
        evaluate.with_tensors(self.model, {name: self.bases[name] + delta for name, delta in deltas.items()})
        for batch in self.sequences.split(self.batch_size):
            with torch.inference_mode():
                hidden = self.model.base_model(batch[:, :-1], use_cache=False).last_hidden_state
            yield hidden.flatten(0, 1), batch[:, 1:].flatten()


def subject(task: LanguageTask, seed: int, folder: Path, samples: int = 40) -> LanguageModel:
    """The fine-tune in `folder`, measured on up to `samples` held-out sequences, spread evenly over the test set."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    bases = _base_tensors()
    step = max(1, -(-len(task.test) // samples))
    return LanguageModel(task.name, seed, folder.name, deltas_of(bases, model), model, bases, task.test[::step])


def deltas_of(bases: Deltas, model: torch.nn.Module) -> Deltas:
    """Of the matrices of the model that changed.  An output layer that is the embeddings counts once, as those."""
    return matrix_deltas(bases, {name: parameter.detach() for name, parameter in model.named_parameters()})


@cache
def _base_tensors() -> dict[str, Tensor]:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(smollm2.base_folder(CACHE), dtype=torch.float32).state_dict()


COMMAND = Suite(
    "language",
    list(TRAINING),
    TRAINING,
    finetunes,
    subject,
    methods=["residual", "sketch", "dts paper", "svd fp16", "drop 4 bit", "ultradelta", "bitdelta"],
    sizes=[0.0025, 0.01, 0.028],
    samples=40,
    quick_tasks=["gsm8k"],
    quick_methods=("residual", "dts paper", "drop 4 bit"),
    quick_sizes=(0.0025,),
    quick_samples=10,
)

if __name__ == "__main__":
    sys.exit(run(COMMAND, __doc__))
