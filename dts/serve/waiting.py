"""Requests that wait, bounded, and the batches that are made of them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass

from dts.serve.job import Job, Row
from dts.serve.refused import Refused

Command = Callable[[], None]  # what else the thread that owns the model is to do
Fits = Callable[[list[Row], Row], bool]  # whether a row may run beside those that run and those taken with it


@dataclass(frozen=True)
class Batching:
    """rows: of a batch;  tokens: of a batch, padding included;  wait: seconds that the first row of an encoder's batch
    waits for others;  queue: rows that may wait;  prefill: tokens of prompts that are read between two tokens of the
    answers that run."""

    rows: int = 32
    tokens: int = 16384
    wait: float = 0.005
    queue: int = 256
    prefill: int = 512


class Waiting:
    """The queue between callers and the thread that owns the model: those of a lower priority first, then the older."""

    def __init__(self, batching: Batching):
        self.batching = batching
        self._rows: list[Row] = []
        self._commands: list[tuple[Command, str | None]] = []
        self._open: list[Job] = []  # taken in, and not over when this was last looked at
        self._changed = threading.Condition()
        self._closed = False
        self.given_up = False

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
            self._open = [*(one for one in self._open if not one.over), job]
            self._insert(job.rows)
            self._changed.notify()

    def put_back(self, rows: list[Row]) -> None:
        """Rows that could not run now wait where they did."""
        with self._changed:
            self._insert(rows)

    def _insert(self, rows: list[Row]) -> None:
        self._rows = sorted([*self._rows, *rows], key=lambda row: (row.job.priority, row.job.arrived, row.index))

    def command(self, command: Command, task: str | None = None) -> None:
        """Done before the next batch; task: not while rows of it run, and none begins before."""
        with self._changed:
            if self._closed:
                raise Refused("the server is stopping", 503, "stopping", retry_after=5)
            self._commands.append((command, task))
            self._changed.notify()

    def close(self) -> None:
        """Nothing more is taken in; what waits is still given out."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    def fail_all(self, error: Refused) -> int:
        """Nobody is answered any more, wherever the rows are: those that wait, those that run, those on their way from
        one to the other.  How many jobs were told."""
        with self._changed:
            told = [job for job in self._open if not (job.over or job.cancelled)]
            for job in told:
                job.fail(error)
            self._closed, self.given_up, self._open, self._rows = True, True, [], []
            self._changed.notify()
        return len(told)

    def take(
        self, busy: Collection[str] = (), fits: Fits | None = None, idle: bool = True
    ) -> list[Row] | Command | None:
        """A batch of rows of one kind, or a command; waits for one.

        busy: tasks of rows that run;  fits: rows to generate are given out as it allows, None: as one batch;
        idle: nothing runs.  Where something does there is no waiting: no rows, then.
        None: closed, and nothing is left.
        """
        with self._changed:
            while True:
                self._purge()
                for place, (command, task) in enumerate(self._commands):
                    if task is None or task not in busy:
                        del self._commands[place]
                        return command
                if batch := self._ready(fits):
                    return batch
                if not idle:
                    return []
                if self._rows:
                    self._changed.wait(self._rows[0].job.arrived + self.batching.wait - time.monotonic())
                elif self._closed:
                    return None
                else:
                    self._changed.wait(1)

    def _ready(self, fits: Fits | None) -> list[Row]:
        """Rows that can run now; none: those that wait must wait on."""
        first = self._rows[0] if self._rows else None
        others = [row for row in self._rows if row.job.kind != "generate"]
        generate = [row for row in self._rows if row.job.kind == "generate"]
        if others and (others[0] is first or fits is not None):
            left = others[0].job.arrived + self.batching.wait - time.monotonic()
            if left <= 0 or len(others) >= self.batching.rows or self._closed:
                return self._give(self._batch(others))
        if fits is None:
            return self._give(self._batch(generate)) if generate and generate[0] is first else []
        held = {task for _, task in self._commands if task is not None}
        batch: list[Row] = []
        for row in generate:
            may_be_held = bool(held) and row.choice.auto  # it may choose one of them
            if not may_be_held and held.isdisjoint(row.choice.tasks):
                if not fits(batch, row):
                    break  # whoever is behind it waits too, so that it has its turn
                batch.append(row)
        return self._give(batch)

    def _give(self, batch: list[Row]) -> list[Row]:
        taken = {id(row) for row in batch}
        self._rows = [row for row in self._rows if id(row) not in taken]
        return batch

    def _purge(self) -> None:
        """Without those that nobody waits for any more."""
        for row in self._rows:
            if row.job.cancelled:
                row.job.drop()
            elif not row.job.over and row.job.late:
                row.job.fail(Refused("the request waited longer than it may take", 504, "timeout"))
        self._rows = [row for row in self._rows if not row.job.over]

    def _batch(self, rows: list[Row]) -> list[Row]:
        """The first row, and of the others of its kind those that are nearest to it in length."""
        first = rows[0]
        near = sorted(
            (row for row in rows[1:] if row.job.kind == first.job.kind),
            key=lambda row: abs(len(row.ids) - len(first.ids)),  # stable: of equal ones the older first
        )
        batch, longest = [first], length(first)
        for row in near:
            wider = max(longest, length(row))
            if len(batch) == self.batching.rows or wider * (len(batch) + 1) > self.batching.tokens:
                break
            batch, longest = [*batch, row], wider
        return batch


def length(row: Row) -> int:
    """Tokens at the end."""
    return len(row.ids) + (row.draws.sampling.max_tokens if row.draws else 0)
