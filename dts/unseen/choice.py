"""What a router answers."""

from torch import Tensor

from dts.nn.router import Choice


def choose(scores: Tensor, names: list[str], floor: float = 0.0) -> Choice:
    """The best task of each row of scores [rows, tasks]; its confidence is its softmax over tasks."""
    scores = scores.float().cpu()
    confidence, best = scores.softmax(1).max(1)
    tasks = [names[b] if c >= floor else None for b, c in zip(best.tolist(), confidence.tolist())]
    return Choice(tasks, confidence, scores, list(names))
