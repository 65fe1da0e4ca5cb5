"""/v1/completions and /v1/chat/completions."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from typing import Any

from fastapi import APIRouter, Request

from dts.serve.choice import Choice
from dts.serve.http.answers import answered_by, head, joined, stream, task_of, usage
from dts.serve.http.asking import Asking, Watched
from dts.serve.http.bodies import Reading
from dts.serve.http.scores import OfChat, OfCompletions
from dts.serve.http.shapes import Chat, Completion, Generation, Message
from dts.serve.job import Piece
from dts.serve.refused import Refused
from dts.serve.sampling import Sampling
from dts.serve.texts import Text

COMPLETION_TOKENS = 16  # where a completion does not say, as OpenAI has it

About = dict[str, Any]  # an answer without its choices
OfPiece = Callable[[Piece, bool], dict[str, Any]]  # a choice; and whether it is the row's first


def routes(asking: Asking) -> APIRouter:
    router = APIRouter(route_class=Reading)

    @router.post("/v1/completions")
    async def completions(asked: Completion, request: Request) -> Any:
        choice, text = await _generating(asking, asked)
        prompts = await asking.prompts(text, asked.prompt)
        tokens = asking.new_tokens(asked.max_tokens, COMPLETION_TOKENS, prompts)
        watched = _submit(asking, request, asked, choice, text, prompts, tokens)
        about = head("cmpl", request.state.request_id, "text_completion", asked.model)
        tell = None if asked.scores is None else OfCompletions(text)
        part = lambda piece, first: _completed(piece, _scores(piece, tell))  # noqa: E731
        return await _answer(asked, watched, about, about, part, part)

    @router.post("/v1/chat/completions")
    async def chat(asked: Chat, request: Request) -> Any:
        choice, text = await _generating(asking, asked)
        prompts = [await asyncio.to_thread(text.chat, [_message(one) for one in asked.messages])]
        asking.check(text, prompts)
        tokens = asking.new_tokens(asked.max_completion_tokens or asked.max_tokens, None, prompts)
        watched = _submit(asking, request, asked, choice, text, prompts, tokens)
        about = head("chatcmpl", request.state.request_id, "chat.completion", asked.model)
        tell = None if asked.scores is None else OfChat(text)
        whole = lambda piece, first: _said(piece, _scores(piece, tell))  # noqa: E731
        part = lambda piece, first: _delta(piece, first, _scores(piece, tell))  # noqa: E731
        return await _answer(asked, watched, about, about | {"object": "chat.completion.chunk"}, whole, part)

    return router


async def _generating(asking: Asking, asked: Generation) -> tuple[Choice, Text]:
    if not asking.served.engine.generates:
        raise Refused("this model is an encoder: it answers /classify and /v1/embeddings", code="not_a_generator")
    if asked.stream_options is not None and not asked.stream:
        raise Refused("stream_options are for answers that stream", param="stream_options")
    return await asking.choice(asked.model)


def _submit(
    asking: Asking,
    request: Request,
    asked: Generation,
    choice: Choice,
    text: Text,
    prompts: Sequence[Sequence[int]],
    tokens: int,
) -> Watched:
    """Every prompt n times, each time with the next seed."""
    most = asking.served.options.limits.rows
    if len(prompts) * asked.n > most:
        raise Refused(f"{len(prompts) * asked.n} answers in one request, and at most {most} may be", param="n")
    temperature, top_p = (1.0 if one is None else one for one in (asked.temperature, asked.top_p))
    how = Sampling(tokens, temperature, top_p, None, asked.stops, asked.scores)
    seeds = [None if asked.seed is None else asked.seed + again for again in range(asked.n)]
    rows = [prompt for prompt in prompts for _ in range(asked.n)]
    samplings = [replace(how, seed=seed) for _ in prompts for seed in seeds]
    return asking.submit(request, "generate", choice, rows, text, samplings, None, asked.priority, not asked.stream)


def _message(message: Message) -> dict[str, Any]:
    """As templates take it: its content in one text."""
    wrong = [part.type for part in message.content if part.type != "text" or part.text is None]
    if wrong:
        raise Refused(f"messages hold text only, not {wrong[0][:50]!r}", param="messages")
    content = "".join(part.text or "" for part in message.content)
    return {"role": message.role, "content": content} | ({"name": message.name} if message.name else {})


def _scores(piece: Piece, tell: OfCompletions | OfChat | None) -> dict[str, Any] | None:
    return None if tell is None else tell(piece.index, piece.scored)


def _completed(piece: Piece, scores: About | None) -> dict[str, Any]:
    return {"index": piece.index, "text": piece.text, "logprobs": scores, "finish_reason": piece.finish}


def _said(piece: Piece, scores: About | None) -> dict[str, Any]:
    message = {"role": "assistant", "content": piece.text}
    return {"index": piece.index, "message": message, "logprobs": scores, "finish_reason": piece.finish}


def _delta(piece: Piece, first: bool, scores: About | None) -> dict[str, Any]:
    delta = {"role": "assistant"} if first else {}
    delta |= {"content": piece.text} if piece.text or first else {}
    return {"index": piece.index, "delta": delta, "logprobs": scores, "finish_reason": piece.finish}


async def _answer(
    asked: Generation, watched: Watched, about: About, about_chunk: About, whole: OfPiece, part: OfPiece
) -> Any:
    rows = watched.job.rows
    prompt = sum(len(row.ids) for row in rows[:: asked.n])  # each once, whatever n is
    if asked.stream:
        wanted = asked.stream_options is not None and asked.stream_options.include_usage
        return stream(_chunks(watched, about_chunk, part, prompt if wanted else None))
    pieces = joined(await watched.all(), len(rows))
    new = sum(piece.tokens for piece in pieces)
    choices = [whole(piece, True) | task_of(row) for piece, row in zip(pieces, rows)]
    return about | {"model": answered_by(watched.job), "choices": choices, "usage": usage(prompt, new)}


async def _chunks(watched: Watched, about: About, part: OfPiece, prompt: int | None) -> AsyncIterator[About]:
    """A chunk a piece, and one of the usage where its prompt's tokens are given."""
    tokens: dict[int, int] = {}
    async for piece in watched.events():
        assert isinstance(piece, Piece)
        row = watched.job.rows[piece.index]
        choice = part(piece, piece.index not in tokens) | task_of(row)
        chunk = about | {"model": answered_by(watched.job, [row]), "choices": [choice]}
        tokens[piece.index] = piece.tokens
        yield chunk if prompt is None else chunk | {"usage": None}
    if prompt is not None:
        last = about | {"model": answered_by(watched.job)}
        yield last | {"choices": [], "usage": usage(prompt, sum(tokens.values()))}
