"""What a router answers."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Choice:
    """The task of each row.

    tasks: a name a row, None (the base) where the confidence is below the floor: what ``DTSModel`` takes as ``tasks=``.
    confidence: float32 [rows], the probability of the best task; scores: float32 [rows, tasks], columns as ``names``.
    """

    tasks: list[str | None]
    confidence: Tensor
    scores: Tensor
    names: list[str]


def choose(scores: Tensor, names: list[str], floor: float = 0.0) -> Choice:
    """The best task of each row of scores [rows, tasks]; its confidence is its softmax over tasks."""
    scores = scores.float().cpu()
    confidence, best = scores.softmax(1).max(1)
    tasks = [names[b] if c >= floor else None for b, c in zip(best.tolist(), confidence.tolist())]
    return Choice(tasks, confidence, scores, list(names))
