"""How the next token is chosen: each row of a batch by its own temperature, share and seed."""

from __future__ import annotations

import math
from collections.abc import Sequence
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
        found = [] if best is None else zip(best.indices.tolist(), best.values.tolist())
        top = tuple((other, log) for other, log in found if log > -math.inf)  # JSON has no number for what cannot be
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

    def uniform(self) -> float:
        """The next number of its stream, in [0, 1)."""
        return float(torch.rand((), dtype=torch.float64, generator=self._generator))


def choose(draws: Sequence[Draws], logits: Tensor) -> list[int | NotFinite]:
    """A token for each row, by its probability, or why there is none; logits: [rows, vocabulary].

    All rows at once: where a vocabulary is large, or a model small, a row at a time takes as long as the model.  What
    a row gets does not depend on the others.
    """
    best, likeliest = logits.max(1)
    finite, tokens = best.isfinite().tolist(), likeliest.tolist()
    drawn = [row for row, one in enumerate(draws) if finite[row] and not one.greedy]
    if drawn:
        own = logits if len(drawn) == len(draws) else logits[drawn]
        for row, token in zip(drawn, _drawn([draws[row] for row in drawn], own)):
            tokens[row] = token
    return [token if is_finite else NotFinite() for token, is_finite in zip(tokens, finite)]


def _drawn(draws: Sequence[Draws], logits: Tensor) -> list[int]:
    """The token of each row where the sum of the shares, in the order of the vocabulary, passes its random number."""
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    temperatures = torch.tensor([one.sampling.temperature for one in draws], dtype=wide.dtype, device=wide.device)
    # the likeliest is 0, so that no temperature makes them infinite
    shares = torch.softmax((wide - wide.amax(1, keepdim=True)) / temperatures[:, None], 1).cpu()
    for row, one in enumerate(draws):
        if one.sampling.top_p < 1:
            shares[row] = _nucleus(shares[row], one.sampling.top_p)
    sums = shares.cumsum(1, dtype=torch.float64)
    whole = sums[:, -1]
    at = torch.tensor([one.uniform() for one in draws], dtype=torch.float64) * whole
    at = torch.minimum(at, whole.nextafter(torch.zeros_like(whole)))  # a product may be rounded up to all of it
    found: list[int] = torch.searchsorted(sums, at[:, None], right=True)[:, 0].tolist()
    return found


def _nucleus(shares: Tensor, top_p: float) -> Tensor:
    """As few of the largest shares as have this sum, the first of equal ones; zeros for the others; shares: [n]."""
    # those below this sum to less than 1 - top_p and are not needed: few are left to sort
    likely = (shares >= (1 - top_p) / len(shares)).nonzero()[:, 0]
    ordered, order = shares[likely].sort(descending=True, stable=True)
    before = ordered.cumsum(0, dtype=torch.float64) - ordered
    kept = likely[order[before < top_p]]
    return torch.zeros_like(shares).index_copy_(0, kept, shares[kept])
