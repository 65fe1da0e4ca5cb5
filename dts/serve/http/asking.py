"""From a route to the engine and back: jobs are made, watched and given up where the client has gone."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from fastapi import Request

from dts.serve.choice import Choice, choice_of
from dts.serve.job import Event, Job, Kind, Piece, Value
from dts.serve.metrics import Metrics
from dts.serve.refused import INPUT, Refused
from dts.serve.sampling import Sampling
from dts.serve.start import Served
from dts.serve.texts import Text

GRACE = 5.0  # seconds after its time that the engine may take to say that a request is late


ROWS = {"/v1/completions": "prompt", "/v1/chat/completions": "messages"}  # what routes call them, others `INPUT`
ROWS |= dict.fromkeys(("/rerank", "/v1/rerank", "/v2/rerank"), "documents")


class Gone(Exception):
    """The client is."""


def named(error: Refused, request: Request) -> Refused:
    """Of what is wrong with a request's rows, wherever that was noticed: the field that they came in."""
    if error.param == INPUT:
        error.param = ROWS.get(getattr(request.scope.get("route"), "path", ""), INPUT)
    return error


@dataclass(frozen=True)
class Asking:
    """What routes need of a server."""

    served: Served
    metrics: Metrics

    async def choice(self, model: str) -> tuple[Choice, Text]:
        """What a model's name means, and its tokenizer; raises Refused."""
        choice = choice_of(model, self.served.catalogue.base_name)
        return choice, await asyncio.to_thread(self.served.texts.of, choice)

    async def prompts(self, text: Text, given: str | Sequence[Any]) -> list[list[int]]:
        """Token ids of each prompt: texts, or ids already; Refused for too many, too long, empty or unknown ones."""
        several: list[Any] = [given] if isinstance(given, str) or isinstance(given[0], int) else list(given)
        self.refuse_rows(len(several), INPUT)
        ids = [await asyncio.to_thread(text.encode, one) if isinstance(one, str) else list(one) for one in several]
        self.check(text, ids)
        return ids

    def refuse_rows(self, count: int, param: str) -> None:
        """Raises Refused for more rows than a request may have."""
        most = self.served.options.limits.rows
        if count > most:
            raise Refused(f"{count} rows in one request, and at most {most} may be", param=param)

    def check(self, text: Text, rows: Sequence[Sequence[int]]) -> None:
        context = self.served.context
        longest = min(self.served.options.limits.prompt or context, context, text.longest or context)
        size = self.served.vocabulary if text is self.served.texts.base else max(self.served.vocabulary, text.size)
        for row in rows:
            if not row:
                raise Refused("an empty prompt has no tokens", param=INPUT)
            if len(row) > longest:
                raise Refused(f"a prompt has {len(row)} tokens, and at most {longest} may be", param=INPUT)
            if max(row) >= size:
                raise Refused(f"the token {max(row)} is none of the model's {size}", param=INPUT)

    def new_tokens(self, asked: int | None, default: int | None, rows: Sequence[Sequence[int]]) -> int:
        """How many an answer may have; raises Refused for more than fit."""
        longest = 0 if self.served.two_sequences else max(map(len, rows))
        room, allowed = self.served.context - longest, self.served.options.limits.tokens
        if asked is not None and asked > allowed:
            raise Refused(f"max_tokens is {asked}, and at most {allowed} may be", param="max_tokens")
        wanted = asked if asked is not None else min(allowed, default or allowed, room)
        if room < 1 or wanted > room:
            raise Refused(
                f"{longest} tokens of the prompt and {max(wanted, 1)} new ones are more than the model's context of "
                f"{self.served.context}",
                code="context_length_exceeded",
                param="max_tokens",
            )
        return wanted

    def submit(
        self,
        request: Request,
        kind: Kind,
        choice: Choice,
        rows: Sequence[Sequence[int]],
        text: Text,
        samplings: Sequence[Sampling] | None = None,
        types: Sequence[Sequence[int] | None] | None = None,
        priority: int | None = None,
        whole: bool = False,
    ) -> Watched:
        """Put a request into the engine's queue; raises Refused.  types: of the tokens of rows that are two texts;
        whole: it does not stream."""
        self.refuse_rows(len(rows), "n")
        loop, events = asyncio.get_running_loop(), asyncio.Queue[Event]()

        def tell(event: Event) -> None:
            with suppress(RuntimeError):  # the loop is closed: nobody is there to be told
                loop.call_soon_threadsafe(events.put_nowait, event)

        deadline = time.monotonic() + self.served.options.limits.seconds
        current = lambda: self.served.texts.of(choice) is text  # noqa: E731
        job = Job(request.state.request_id, kind, choice, tell, deadline, text.ends, priority or 0, whole, current)
        for index, row in enumerate(rows):
            sampling, kinds = None if samplings is None else samplings[index], None if types is None else types[index]
            job.add(row, sampling, text.decode, kinds)
        self.served.engine.submit(job)
        self.metrics.taken(job)
        return Watched(self, request, job, events)


class Watched:
    """A job that the engine has, and the client that waits for it."""

    def __init__(self, asking: Asking, request: Request, job: Job, events: asyncio.Queue[Event]):
        self._asking, self._request, self.job, self._events = asking, request, job, events

    async def events(self) -> AsyncIterator[Piece | Value]:
        """The answers as they come; raises Refused.  Whoever stops reading gives the job up."""
        try:
            while True:
                left = self.job.deadline + GRACE - time.monotonic()
                try:
                    event = await asyncio.wait_for(self._events.get(), max(left, 0))
                except TimeoutError:
                    raise Refused("the request took longer than it may", 504, "timeout") from None
                if event is None:
                    return
                if isinstance(event, Refused):
                    raise named(event, self._request)
                yield event
        finally:
            self.job.cancel()  # of no effect where it is over
            self._asking.metrics.finished(self.job, time.monotonic() - self.job.arrived)

    async def all(self) -> list[Piece | Value]:
        """Every event; raises Refused, and Gone as soon as the client is."""

        async def collect() -> list[Piece | Value]:
            return [event async for event in self.events()]

        async def leave() -> None:
            while (await self._request.receive())["type"] != "http.disconnect":
                pass

        answers, gone = asyncio.ensure_future(collect()), asyncio.ensure_future(leave())
        try:
            await asyncio.wait([answers, gone], return_when=asyncio.FIRST_COMPLETED)
            if answers.done():
                return answers.result()
            raise Gone
        finally:
            for task in (answers, gone):
                task.cancel()
            await asyncio.gather(answers, gone, return_exceptions=True)
