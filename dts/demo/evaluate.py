"""How close a reconstruction comes to the fine-tuned model: logits on a test set, accuracy, agreement, KL."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from dts import metrics
from dts.demo.finetune import tokenize
from dts.demo.tasks import Text


@dataclass(frozen=True)
class Score:
    """Of one model on one test set, each against the fine-tuned model's logits where it needs a reference."""

    accuracy: float  # share of right answers
    agreement: float  # share of answers equal to the fine-tuned model's
    kl: float  # mean KL(fine-tuned || model), nats


def logits(forward: Callable, tokenizer, texts: list[Text], batch_size: int = 64) -> torch.Tensor:
    """Logits [N, classes] (float32, CPU), in the order of `texts`.

    `forward(**inputs)` is a Hugging Face model, a `DTSModel`, or anything that returns `.logits`.  Texts go through
    in order of length, and a batch's padding is masked, so the order does not change the result beyond rounding.
    """
    order = sorted(range(len(texts)), key=lambda i: len("".join(texts[i])))
    found: dict[int, torch.Tensor] = {}
    with torch.inference_mode():
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            inputs = tokenize(tokenizer, [texts[i] for i in batch])
            for i, row in zip(batch, forward(**inputs).logits.float().cpu()):
                found[i] = row
    return torch.stack([found[i] for i in range(len(texts))])


def score(logits: torch.Tensor, reference: torch.Tensor, labels: list[int]) -> Score:
    """Score of `logits` [N, classes] against the fine-tuned model's logits of the same shape and the true labels."""
    accuracy = (logits.argmax(-1) == torch.tensor(labels)).float().mean().item()
    return Score(accuracy, metrics.agreement(logits, reference), metrics.kl(logits, reference))


def load_finetuned(folder: str | Path):
    """Model (in eval mode, float32) and tokenizer of a classification checkpoint."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
    return model.eval(), AutoTokenizer.from_pretrained(folder)


def with_tensors(model, tensors: dict[str, torch.Tensor]):
    """`model` with the named tensors replaced in place: the dense path, whatever method made the tensors."""
    missing = tensors.keys() - model.state_dict().keys()
    if missing:
        raise KeyError(f"the model has no tensor named {', '.join(sorted(missing))}")
    model.load_state_dict(tensors, strict=False)
    return model
