"""Classes with their names, row by row: logits read by the config of each row's own task."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dts.nn.selection import Selection


@dataclass(frozen=True)
class Prediction:
    """What one row was taken for.

    task: the row's own;  names: of its classes.
    probabilities: float32 [classes], or [tokens, classes] of a model that classifies tokens; by softmax, each by itself
    (sigmoid) where a row may have several classes, and the numbers as they are of a regression.
    """

    task: Selection
    names: list[str]
    probabilities: Tensor

    @property
    def label(self) -> Any:
        """The name of the likeliest class; of tokens, a list."""
        best = self.probabilities.argmax(-1).tolist()
        return [self.names[i] for i in best] if isinstance(best, list) else self.names[best]

    @property
    def score(self) -> Any:
        """Its probability; of tokens, a list."""
        return self.probabilities.amax(-1).tolist()

    def __repr__(self) -> str:
        shown = f"{self.label!r}, {self.score:.3f}" if self.probabilities.dim() == 1 else f"{len(self.label)} tokens"
        return f"Prediction({shown}, task={self.task!r})"


def predicted(task: Selection, logits: Tensor, config: Any) -> Prediction:
    """logits: of one row, over its own classes.  Raises ValueError where the config does not name these."""
    names = getattr(config, "id2label", None)
    if not names or len(names) != logits.shape[-1]:
        raise ValueError(
            f"predict() is for models that classify: the outputs of a row are {list(logits.shape)}, and the config "
            f"names {len(names or ())} classes"
        )
    kind, values = getattr(config, "problem_type", None), logits.detach().float()
    if kind == "multi_label_classification" or (kind is None and len(names) == 1):
        values = values.sigmoid()
    elif kind != "regression":
        values = torch.softmax(values, -1)
    return Prediction(task, [str(names[i]) for i in range(len(names))], values)
