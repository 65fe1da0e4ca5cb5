"""Parts that answers share."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

from fastapi.responses import StreamingResponse

from dts.serve.http.errors import body_of
from dts.serve.job import Job, Piece, Row
from dts.serve.refused import Refused


def usage(prompt: int, new: int = 0) -> dict[str, Any]:
    return {"prompt_tokens": prompt, "completion_tokens": new, "total_tokens": prompt + new}


def head(prefix: str, request_id: str, kind: str, model: str) -> dict[str, Any]:
    return {"id": f"{prefix}-{request_id}", "object": kind, "created": int(time.time()), "model": model}


def joined(pieces: Sequence[Any], rows: int) -> list[Piece]:
    """The pieces of each row as one."""
    found = [Piece(index, "", 0) for index in range(rows)]
    for piece in pieces:
        before = found[piece.index]
        found[piece.index] = Piece(
            piece.index, before.text + piece.text, piece.tokens, piece.finish, (*before.scored, *piece.scored)
        )
    return found


def answered_by(job: Job, rows: Sequence[Row] | None = None) -> str:
    """The model's name for an answer: of "auto" the task that was chosen, where it is one for all of its rows."""
    names = {row.choice.name for row in (job.rows if rows is None else rows)}
    return names.pop() if job.choice.auto and len(names) == 1 else job.choice.name


def task_of(row: Row) -> dict[str, Any]:
    """A field more where a row's input chose its task."""
    return {} if row.routed is None else {"task": row.routed.name}


def stream(chunks: AsyncIterator[dict[str, Any]]) -> StreamingResponse:
    """Server-sent events; an error after the beginning is an event of its own."""

    async def lines() -> AsyncIterator[str]:
        try:
            async for chunk in chunks:
                yield f"data: {json.dumps(chunk)}\n\n"
        except Refused as error:
            yield f"data: {json.dumps(body_of(error))}\n\n"
            return
        yield "data: [DONE]\n\n"

    headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}  # no proxy holds pieces back
    return StreamingResponse(lines(), media_type="text/event-stream", headers=headers)
