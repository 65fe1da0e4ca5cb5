"""One whole call of ``generate`` over rows of any tasks, each sampled and ended by itself."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dts.nn import DTSModel
from dts.serve.answer import Answer
from dts.serve.encode import padded
from dts.serve.job import Piece, Row
from dts.serve.refused import NotFinite
from dts.serve.sampling import Scored, choose


class OnceATask(RuntimeError):
    """The model runs a batch of several tasks once a task: batches of generate must be of one."""


class Steps:
    """What happens at every token of a batch: rows choose theirs, are told, and end.

    prompt: tokens of the batch's sequences before the first new one, padding included.
    """

    def __init__(self, rows: Sequence[Row], prompt: int, answer: Answer):
        self.rows, self._answer = rows, answer
        self._length, self._chosen = prompt, [0] * len(rows)
        self._scored: list[Scored | None] = [None] * len(rows)

    def choose(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """A logits processor: leaves each row the token that it chose.  scores: [rows, vocabulary]."""
        if tuple(input_ids.shape) != (len(self.rows), self._length):
            raise OnceATask
        self._length += 1
        best = [0] * len(self.rows)
        draws = {i: row.draws for i, row in enumerate(self.rows) if row.draws and not (row.done or row.job.over)}
        own = scores[list(draws)]
        for (index, one), token, row_scores in zip(draws.items(), choose([*draws.values()], own), own):
            if isinstance(token, NotFinite):
                self.rows[index].job.fail(token)
            else:
                best[index], self._scored[index] = token, one.scored(row_scores, token)
        self._chosen = best
        only = torch.full_like(scores, -torch.inf)
        return only.scatter_(1, torch.tensor(best, device=scores.device)[:, None], 0.0)

    def ended(self, input_ids: Tensor, scores: Tensor, **_: object) -> Tensor:
        """A stopping criterion: bool [rows]."""
        for row, token, scored in zip(self.rows, self._chosen, self._scored):
            if not row.done:
                self._answer.push(row, token, scored)
        return torch.tensor([row.done or row.job.over for row in self.rows], device=input_ids.device)


def generate(model: DTSModel, rows: Sequence[Row], pad: int, answer: Answer) -> None:
    """Answers rows piece by piece, as their tokens come; returns when all have ended.

    The draws are made here, a row with its own random numbers: to transformers the call is a greedy one.
    """
    base: Any = model.model
    apart = base.config.is_encoder_decoder  # the encoder counts positions from the left, the decoder begins anew
    batch = padded([row.ids for row in rows], pad, model.device, left=not apart)
    steps = Steps(rows, 1 if apart else batch["input_ids"].shape[1], answer)
    model.generate(
        **batch,
        tasks=[row.choice.selection for row in rows],
        max_new_tokens=max(row.draws.sampling.max_tokens for row in rows if row.draws is not None),
        do_sample=False,
        num_beams=1,
        pad_token_id=pad,
        logits_processor=[steps.choose],
        stopping_criteria=[steps.ended],
    )
    now = time.monotonic()
    for row in rows:  # generate may end by itself, at a token that only its own configuration knows
        if not row.done and not row.job.over:
            assert row.text is not None
            row.job.last_token = now
            rest = row.held + row.text.rest()
            row.job.answer(row, Piece(row.index, rest, row.tokens, "stop", tuple(row.scored)), last=True)
