"""What a row says with each token that it chose, and whether it ends there: the same for every way to batch."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

from dts.serve.job import Piece, Row
from dts.serve.refused import Refused
from dts.serve.sampling import Scored

Told = Callable[[Row], None]  # called with a row at each of its tokens


def gone(row: Row) -> bool:
    """Whether nobody waits for the row any more; its job is told why, where that is news."""
    job = row.job
    if job.cancelled:
        job.drop()
    elif job.late and not job.over:
        job.fail(Refused("the answer took longer than a request may", 504, "timeout"))
    if job.over:
        row.done = True
    return row.done


@dataclass(frozen=True)
class Answer:
    """ends: tokens that end any answer, a job has its own beside them;  told: hears of each token."""

    ends: Collection[int]
    told: Told

    def push(self, row: Row, token: int, scored: Scored | None = None) -> None:
        """A row has chosen a token: its text goes out as far as it is certain, and the row may be done."""
        if gone(row):
            return
        job, text = row.job, row.text
        assert text is not None and row.draws is not None
        row.tokens += 1
        self.told(row)
        new, finish = "", None
        if token in self.ends or token in job.ends:
            finish = "stop"
        else:
            new = text.push(token)
            if scored is not None:
                row.scored.append(scored)
            if text.stopped:
                finish = "stop"
            elif row.tokens >= row.draws.sampling.max_tokens:
                finish = "length"
        if finish is not None:
            new += text.rest()
            finish = "stop" if text.stopped else finish
        if job.whole:
            row.held += new
            new = row.held if finish is not None else ""
        if new or finish is not None:
            scores, row.scored = tuple(row.scored), []
            job.answer(row, Piece(row.index, new, row.tokens, finish, scores), last=finish is not None)
