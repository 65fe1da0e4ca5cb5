"""Requests that wait, bounded, and the batches that are made of them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from dts.serve.job import Job, Row
from dts.serve.refused import Refused

Command = Callable[[], None]  # what else the thread that owns the model is to do


@dataclass(frozen=True)
class Batching:
    """rows: of a batch;  tokens: of a batch, padding included;  wait: seconds that the first row of an encoder's batch
    waits for others;  queue: rows that may wait."""

    rows: int = 32
    tokens: int = 16384
    wait: float = 0.005
    queue: int = 256


class Waiting:
    """The queue between callers and the thread that owns the model."""

    def __init__(self, batching: Batching):
        self.batching = batching
        self._rows: list[Row] = []
        self._commands: list[Command] = []
        self._changed = threading.Condition()
        self._closed = False

    def __len__(self) -> int:
        return len(self._rows)

    def put(self, job: Job) -> None:
        """All rows of a job or none; raises Refused: 429 where the queue is full, 503 where it is closed."""
        with self._changed:
            if self._closed:
                raise Refused("the server is stopping", 503, "stopping", retry_after=5)
            self._purge()
            if len(self._rows) + len(job.rows) > self.batching.queue:
                raise Refused(
                    f"{len(self._rows)} rows wait and {self.batching.queue} may: ask again later",
                    429,
                    "queue_full",
                    retry_after=1,
                )
            self._rows += job.rows
            self._changed.notify()

    def put_back(self, rows: list[Row]) -> None:
        """Rows that could not be in this batch wait in front again."""
        with self._changed:
            self._rows[:0] = rows

    def command(self, command: Command) -> None:
        """Done before the next batch."""
        with self._changed:
            if self._closed:
                raise Refused("the server is stopping", 503, "stopping", retry_after=5)
            self._commands.append(command)
            self._changed.notify()

    def close(self) -> None:
        """Nothing more is taken in; what waits is still given out."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    def fail_all(self, error: Refused) -> None:
        with self._changed:
            for row in self._rows:
                row.job.fail(error)
            self._rows = []

    def take(self) -> list[Row] | Command | None:
        """A batch of rows of one kind, or a command; waits for one.  None: closed, and nothing is left."""
        with self._changed:
            while True:
                self._purge()
                if self._commands:
                    return self._commands.pop(0)
                if self._rows:
                    left = self._rows[0].job.arrived + self.batching.wait - time.monotonic()
                    full = len(self._rows) >= self.batching.rows
                    if left <= 0 or full or self._closed or self._rows[0].job.kind == "generate":
                        return self._batch()
                    self._changed.wait(left)
                elif self._closed:
                    return None
                else:
                    self._changed.wait(1)

    def _purge(self) -> None:
        """Without those that nobody waits for any more."""
        for row in self._rows:
            if row.job.cancelled:
                row.job.drop()
            elif not row.job.over and row.job.late:
                row.job.fail(Refused("the request waited longer than it may take", 504, "timeout"))
        self._rows = [row for row in self._rows if not row.job.over]

    def _batch(self) -> list[Row]:
        """The row that waits longest, and of the others of its kind those that are nearest to it in length."""
        first = self._rows[0]
        near = sorted(
            (row for row in self._rows[1:] if row.job.kind == first.job.kind),
            key=lambda row: abs(len(row.ids) - len(first.ids)),  # stable: of equal ones the older first
        )
        batch, longest = [first], _length(first)
        for row in near:
            wider = max(longest, _length(row))
            if len(batch) == self.batching.rows or wider * (len(batch) + 1) > self.batching.tokens:
                break
            batch, longest = [*batch, row], wider
        taken = {id(row) for row in batch}
        self._rows = [row for row in self._rows if id(row) not in taken]
        return batch


def _length(row: Row) -> int:
    """Tokens at the end."""
    return len(row.ids) + (row.draws.sampling.max_tokens if row.draws else 0)
