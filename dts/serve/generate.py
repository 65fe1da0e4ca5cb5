"""One whole call of ``generate`` over rows of any tasks, each sampled and ended by itself."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence

import torch
from torch import Tensor

from dts.nn import DTSModel
from dts.serve.encode import padded
from dts.serve.job import Piece, Row
from dts.serve.refused import Refused


class OnceATask(RuntimeError):
    """The model runs a batch of several tasks once a task: batches of generate must be of one."""


class Steps:
    """What happens at every token of a batch: rows choose theirs, are told, and end.

    end_ids: tokens that end any answer, a job has its own beside them;  prompt: tokens of the batch's prompts,
    padding included;  told: called with a row at each of its tokens.
    """

    def __init__(self, rows: Sequence[Row], end_ids: Collection[int], prompt: int, told: Callable[[Row], None]):
        self.rows, self._end_ids, self._told = rows, frozenset(end_ids), told
        self._length, self._chosen = prompt, [0] * len(rows)

    def choose(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """A logits processor: leaves each row the token that it chose.  scores: [rows, vocabulary]."""
        if tuple(input_ids.shape) != (len(self.rows), self._length):
            raise OnceATask
        self._length += 1
        best = scores.argmax(-1).tolist()
        for index, row in enumerate(self.rows):
            if not row.done and row.draws is not None and not row.draws.greedy:
                best[index] = row.draws.choose(scores[index])
        self._chosen = best
        only = torch.full_like(scores, -torch.inf)
        return only.scatter_(1, torch.tensor(best, device=scores.device)[:, None], 0.0)

    def ended(self, input_ids: Tensor, scores: Tensor, **_: object) -> Tensor:
        """A stopping criterion: bool [rows]."""
        for row, token in zip(self.rows, self._chosen):
            if not row.done:
                self._push(row, token)
        return torch.tensor([row.done or row.job.over for row in self.rows], device=input_ids.device)

    def _push(self, row: Row, token: int) -> None:
        job, text = row.job, row.text
        if job.cancelled:
            job.drop()
        elif job.late:
            job.fail(Refused("the answer took longer than a request may", 504, "timeout"))
        if job.over:
            row.done = True
            return
        assert text is not None and row.draws is not None
        row.tokens += 1
        self._told(row)
        new, finish = "", None
        if token in self._end_ids or token in job.ends:
            finish = "stop"
        else:
            new = text.push(token)
            if text.stopped:
                finish = "stop"
            elif row.tokens >= row.draws.sampling.max_tokens:
                finish = "length"
        if finish is not None:
            new += text.rest()
            finish = "stop" if text.stopped else finish
        if new or finish is not None:
            job.answer(row, Piece(row.index, new, row.tokens, finish), last=finish is not None)


def generate(
    model: DTSModel, rows: Sequence[Row], pad: int, end_ids: Collection[int], told: Callable[[Row], None]
) -> None:
    """Answers rows piece by piece, as their tokens come; returns when all have ended.

    The draws are made here, a row with its own random numbers: to transformers the call is a greedy one.
    """
    batch = padded([row.ids for row in rows], pad, model.device, left=True)
    steps = Steps(rows, end_ids, batch["input_ids"].shape[1], told)
    model.generate(
        **batch,
        tasks=[row.job.choice.selection for row in rows],
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
            row.job.answer(row, Piece(row.index, row.text.rest(), row.tokens, "stop"), last=True)
