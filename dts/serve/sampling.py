"""How the next token is chosen: each row of a batch by its own temperature, share and seed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dts.serve.refused import NotFinite

COLDEST = 1e-5  # below it logits would be divided out of the range of numbers


@dataclass(frozen=True)
class Sampling:
    """max_tokens: at most so many new ones;  temperature: 0 takes the most likely;  top_p: of the most likely tokens,
    as few as have this share of the probability;  seed: the same gives the same draws, None: others each time;
    stop: texts before which the answer ends;  scores: how many of the likeliest tokens are told with each, None: not
    even its own probability."""

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    scores: int | None = None


@dataclass(frozen=True)
class Scored:
    """A token that was chosen, its log probability, and those of the likeliest: (token, log probability).

    They are the model's own, before temperature and top_p.
    """

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()

    @classmethod
    def of(cls, logits: Tensor, token: int, count: int) -> Scored:
        """logits: [vocabulary]."""
        logs = torch.log_softmax(logits.float(), 0)
        best = torch.topk(logs, min(count, len(logs))) if count else None
        top = () if best is None else tuple(zip(best.indices.tolist(), best.values.tolist()))
        return cls(token, float(logs[token]), top)


class Draws:
    """The choices of one row: a stream of random numbers of its own, so that a batch's other rows change nothing."""

    def __init__(self, sampling: Sampling):
        self.sampling = sampling
        self._generator = torch.Generator()
        if sampling.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(sampling.seed)

    @property
    def greedy(self) -> bool:
        return self.sampling.temperature < COLDEST

    def scored(self, logits: Tensor, token: int) -> Scored | None:
        """What is told of the token that was chosen, None where nobody asked."""
        count = self.sampling.scores
        return None if count is None else Scored.of(logits, token, count)

    def choose(self, logits: Tensor) -> int:
        """A token by its probability; logits: [vocabulary].  Raises Refused where they are no numbers."""
        best, token = logits.max(0)
        if not best.isfinite():
            raise NotFinite()
        if self.greedy:
            return int(token)
        scaled = logits.double() / self.sampling.temperature
        ordered, order = torch.softmax(scaled, 0).cpu().sort(descending=True, stable=True)
        if self.sampling.top_p < 1:
            before = ordered.cumsum(0) - ordered
            ordered = ordered * (before < self.sampling.top_p)  # the most likely one is always among them
        return int(order[torch.multinomial(ordered, 1, generator=self._generator)])
