"""One fine-tune, and how many answers are right with another encoder in its place."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

import dts
from dts.demo import evaluate
from dts.demo.finetune import tokenize
from dts.demo.tasks import Task
from dts.unseen import task_embeddings


@dataclass
class Tested:
    """One fine-tune and up to ``samples`` texts of its test set, spread evenly over it."""

    task: Task
    folder: Path
    samples: int
    model: torch.nn.Module = field(init=False)

    def __post_init__(self):
        self.model, self.tokenizer = evaluate.load_finetuned(self.folder)
        texts, labels = self.task.split("test")
        step = max(1, -(-len(texts) // self.samples))
        self.texts, self.labels = texts[::step], torch.tensor(labels[::step])
        self.own = {n: v.clone() for n, v in self.model.state_dict().items()}

    def accuracy(self, encoder: dict[str, Tensor] | None) -> float:
        return self.right(encoder).double().mean().item()

    def right(self, encoder: dict[str, Tensor] | None) -> Tensor:
        """Which answers are right (bool) with this encoder, named as the base, under the task's own head.

        None: the fine-tune's own encoder.
        """
        return evaluate.logits(self._with(encoder), self.tokenizer, self.texts).argmax(-1) == self.labels

    def _with(self, encoder: dict[str, Tensor] | None) -> torch.nn.Module:
        state = self.own | {f"bert.{n}": v for n, v in (encoder or {}).items() if f"bert.{n}" in self.own}
        return evaluate.with_tensors(self.model, state)

    @torch.inference_mode()
    def zero_shot(self, encoder: dict[str, Tensor] | None) -> float:
        """Accuracy of the class whose name's mean-pooled embedding is nearest to the text's."""
        bert = self._with(encoder).bert

        def embed(texts: list[str]) -> Tensor:
            parts = []
            for start in range(0, len(texts), 64):
                inputs = tokenize(self.tokenizer, texts[start : start + 64])
                states, mask = bert(**inputs).last_hidden_state, inputs["attention_mask"][..., None]
                parts.append(torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=1))
            return torch.cat(parts)

        names = task_embeddings({"": self.task.class_names}, embed)[""]
        best = (embed([flat(text) for text in self.texts]) @ names.T).argmax(1)
        return (best == self.labels).double().mean().item()


def flat(text) -> str:
    """A pair of texts as one."""
    return text if isinstance(text, str) else " ".join(text)


def spread(items: list, count: int) -> list:
    """At most ``count`` of the items, evenly over all: data sets may be sorted by class."""
    return [items[i * len(items) // count] for i in range(count)] if len(items) > count else list(items)


def state_of(checkpoint) -> Iterable[tuple[str, Tensor]]:
    return ((name, checkpoint.load(name)) for name in checkpoint.names)


def encoder_of(adapter: dts.Adapter, base) -> dict[str, Tensor]:
    """Base + adapter under the base's names."""
    tensors = adapter.apply(base, check=False)
    return {name.removeprefix("bert."): value for name, value in tensors if not name.startswith("classifier")}
