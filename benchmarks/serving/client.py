"""Many clients at once over loopback, each on a connection of its own, with nothing but asyncio's streams."""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from benchmarks.serving.made import Question

Text = Callable[[list[int]], str]


@dataclass
class Load:
    """What became of requests.  statuses: HTTP's, 0 where there was no answer;  seconds: of each that was answered;
    wrong: answers that are not the dense single-task model's."""

    statuses: Counter[int] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    wrong: int = 0
    tokens: int = 0
    took: float = 0.0

    @property
    def tokens_a_second(self) -> float:
        return self.tokens / self.took

    def quantile(self, share: float) -> float:
        ordered = sorted(self.seconds)
        return ordered[min(int(share * len(ordered)), len(ordered) - 1)] if ordered else float("nan")

    def row(self) -> dict[str, object]:
        return {
            "requests": sum(self.statuses.values()),
            "statuses": {str(status): count for status, count in sorted(self.statuses.items())},
            "wrong": self.wrong,
            "p50_s": round(statistics.median(self.seconds), 4) if self.seconds else None,
            "p99_s": round(self.quantile(0.99), 4) if self.seconds else None,
            "tokens_a_second": round(self.tokens_a_second, 1),
            "seconds": round(self.took, 2),
        }


async def _ask(port: int, question: Question, load: Load, text: Text | None) -> None:
    begun = time.monotonic()
    asked = {"model": question.task, "prompt": list(question.prompt), "max_tokens": question.tokens, "temperature": 0}
    if text is not None:
        asked["return_token_ids"] = True
    body = json.dumps(asked)
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(body)}\r\n"
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            writer.write(f"{head}Content-Type: application/json\r\n\r\n{body}".encode())
            answer = await reader.read()
        finally:
            writer.close()
        status = int(answer.split(b" ", 2)[1])
        content = json.loads(answer.partition(b"\r\n\r\n")[2])
    except (OSError, ValueError, IndexError):
        load.statuses[0] += 1
        return
    load.statuses[status] += 1
    if status == 200:
        load.seconds.append(time.monotonic() - begun)
        load.tokens += content["usage"]["completion_tokens"]
        choice = content["choices"][0]
        load.wrong += (choice["text"] if text is None else text(choice["token_ids"])) != question.answer


async def _all(
    port: int | Mapping[str, int], questions: Sequence[Question], clients: int, load: Load, text: Text | None
) -> None:
    waiting = list(reversed(questions))

    async def client() -> None:
        while waiting:
            question = waiting.pop()
            await _ask(port if isinstance(port, int) else port[question.task], question, load, text)

    await asyncio.gather(*(client() for _ in range(clients)))


def run(port: int | Mapping[str, int], questions: Sequence[Question], clients: int, text: Text | None = None) -> Load:
    """All questions by so many clients, each of which asks the next one when it was answered.

    port: of the server, or of each task's own;  text: of the tokens of an answer, where the server's own text is not
    asked for: vLLM's begins with letters of which the prompt has half.
    """
    load, begun = Load(), time.monotonic()
    asyncio.run(_all(port, questions, clients, load, text))
    load.took = time.monotonic() - begun
    return load
