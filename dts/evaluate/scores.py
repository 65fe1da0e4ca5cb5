"""One model after the other on the same batches, in bounded memory.

A *place* is where a model answers: a row of a classifier, a token of a language model.  The largest answer is kept of
every place of the fine-tune; its logits only of every ``stride``-th, so that they fit into ``KEPT`` bytes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dts import metrics
from dts.evaluate.inputs import Batch

KEPT = 1 << 28  # bytes of the fine-tune's logits that stay in memory


@dataclass
class Reference:
    """The fine-tune's answers, a tensor a batch: ``tops`` [places], ``logits`` [kept places, classes] in float32."""

    stride: int
    tops: list[Tensor] = field(default_factory=list)
    logits: list[Tensor] = field(default_factory=list)


@dataclass(frozen=True)
class Score:
    """accuracy, loss (mean cross entropy, nats): None without labels;  agreement, kl: None of the fine-tune itself.

    places: answers that were compared;  kl_places: those of them that the KL is over;  seconds: of the forward passes.
    """

    accuracy: float | None
    loss: float | None
    agreement: float | None
    kl: float | None
    places: int
    kl_places: int
    seconds: float

    @property
    def perplexity(self) -> float | None:
        return None if self.loss is None else math.exp(min(self.loss, 700.0))


def stride_of(places: int, classes: int) -> int:
    """Of which places the fine-tune's logits are kept: every so many."""
    return max(1, math.ceil(places * classes * 4 / KEPT))


def score(
    forward: Callable[..., Tensor],
    batches: Iterable[Batch],
    answers: Callable[[Tensor, Batch], tuple[Tensor, Tensor | None]],
    reference: Reference,
    fill: bool = False,
    step: Callable[[int], None] = lambda rows: None,
) -> Score:
    """Runs a model over all batches.

    forward(**inputs) -> logits;  answers(logits, batch) -> (logits [places, classes], right classes or None);
    fill: this is the fine-tune, whose answers the reference keeps;  step: called with the rows of each batch.
    Raises ValueError where the model has other classes than the fine-tune.
    """
    places = right = agreed = kept = seen = 0
    loss = divergence = seconds = 0.0
    labelled = False
    with torch.inference_mode():
        for number, batch in enumerate(batches):
            start = time.perf_counter()
            given = forward(**batch.inputs)
            seconds += time.perf_counter() - start
            logits, labels = answers(given, batch)
            logits = logits.float().cpu()
            tops = logits.argmax(-1)
            chosen = torch.tensor(range(-seen % reference.stride, len(tops), reference.stride), dtype=torch.long)
            if fill:
                reference.tops.append(tops)
                reference.logits.append(logits[chosen])
            else:
                agreed += int((tops == reference.tops[number]).sum())
                if len(chosen):
                    divergence += metrics.kl(logits[chosen], reference.logits[number]) * len(chosen)
                    kept += len(chosen)
            if labels is not None:
                labelled = True
                right += int((tops == labels).sum())
                loss += torch.nn.functional.cross_entropy(logits, labels, reduction="sum").item()
            places += len(tops)
            seen += len(tops)
            step(len(batch.rows))
    return Score(
        right / places if labelled else None,
        loss / places if labelled else None,
        None if fill else agreed / places,
        None if fill else max(0.0, divergence / kept),
        places,
        0 if fill else kept,
        seconds,
    )
