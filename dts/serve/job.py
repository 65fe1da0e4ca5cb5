"""A request on its way through the engine: its rows, and what it is told as they are answered."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from dts.adapter import Adapter
from dts.serve.choice import Choice
from dts.serve.refused import Refused
from dts.serve.sampling import Draws, Sampling, Scored
from dts.serve.streamed import Decode, Streamed

Kind = Literal["classify", "embed", "generate"]


@dataclass(frozen=True)
class Piece:
    """Text of a generated answer; tokens: so many so far;  finish: "stop" or "length" with the last piece;  scored: the
    tokens since the last piece with their probabilities, where they were asked for."""

    index: int
    text: str
    tokens: int
    finish: str | None = None
    scored: tuple[Scored, ...] = ()


@dataclass(frozen=True)
class Value:
    """The whole answer of a row of an encoder: float32 numbers."""

    index: int
    value: list[float]


Event = Piece | Value | Refused | None  # None: all rows are answered; Refused: none will be any more


@dataclass(eq=False)
class Row:
    """One sequence: prompt token ids in, one answer out."""

    job: Job
    index: int
    ids: Sequence[int]
    draws: Draws | None = None
    text: Streamed | None = None
    tokens: int = 0  # generated so far
    last_token: float | None = None  # when, in seconds of time.monotonic
    done: bool = False
    blocked: float | None = None  # since when its tasks have had no room in memory
    scored: list[Scored] = field(default_factory=list)  # of tokens whose text was not told yet
    held: str = ""  # text that was not told yet, of an answer that is told whole
    routed: Choice | None = None  # of a row for which a task was chosen
    adapters: Sequence[Adapter] = ()  # of its tasks, as they were when it ran
    types: Sequence[int] | None = None  # of its tokens, where they are of two texts

    @property
    def choice(self) -> Choice:
        """What answers it."""
        return self.routed or self.job.choice


@dataclass(eq=False)
class Job:
    """What one request asks.  Made by any thread; its ``tell`` is called by the engine's thread.

    id: of the request, for the log;  deadline: seconds of `time.monotonic`;  ends: tokens that end an answer, beside
    those of the model's own configuration;  priority: those of a lower one go first;  whole: an answer is told in one
    piece, when it has ended: waking whoever waits for it at every token would cost the rows that run;  current:
    whether its tokens are still those that its task takes: it may be loaded again while a request waits.
    """

    id: str
    kind: Kind
    choice: Choice
    tell: Callable[[Event], None]
    deadline: float
    ends: frozenset[int] = frozenset()
    priority: int = 0
    whole: bool = False
    current: Callable[[], bool] = lambda: True
    rows: list[Row] = field(default_factory=list)
    arrived: float = field(default_factory=time.monotonic)
    started: float | None = None
    last_token: float | None = None
    over: bool = False
    cancelled: bool = False
    reason: str = "abort"  # why it ended, for the figures

    def add(
        self,
        ids: Sequence[int],
        sampling: Sampling | None = None,
        decode: Decode | None = None,
        types: Sequence[int] | None = None,
    ) -> None:
        draws = None if sampling is None else Draws(sampling)
        text = None if sampling is None or decode is None else Streamed(decode, sampling.stop, self.whole)
        self.rows.append(Row(self, len(self.rows), ids, draws, text, types=types))

    def cancel(self) -> None:
        """Whoever asked is gone: rows that wait are dropped, those that run end with the next token."""
        self.cancelled = True

    @property
    def late(self) -> bool:
        return time.monotonic() > self.deadline

    def answer(self, row: Row, event: Piece | Value, last: bool) -> None:
        if self.over:
            return
        row.done |= last
        self.tell(event)
        if all(one.done for one in self.rows):
            self.over = True
            self.reason = (event.finish if isinstance(event, Piece) else None) or "stop"
            self.tell(None)

    def fail(self, error: Refused) -> None:
        if not self.over:
            self.over, self.reason = True, "error"
            self.tell(error)

    def drop(self) -> None:
        """Nobody waits for it."""
        self.over = True


class Collected:
    """Events in a thread that may wait: ``Job(..., tell=collected)``, then ``collected.events()``."""

    def __init__(self) -> None:
        self._events: queue.Queue[Event] = queue.Queue()
        self._ended = threading.Event()

    def __call__(self, event: Event) -> None:
        self._events.put(event)

    def events(self, timeout: float = 60) -> list[Any]:
        """All of them; raises the Refused that ended the job, TimeoutError after so many seconds without one."""
        found: list[Any] = []
        while True:
            try:
                event = self._events.get(timeout=timeout)
            except queue.Empty:
                raise TimeoutError(f"no answer in {timeout} s") from None
            if isinstance(event, Refused):
                raise event
            if event is None:
                return found
            found.append(event)
