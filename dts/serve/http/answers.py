"""Parts that answers share."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

from fastapi.responses import StreamingResponse

from dts.serve.http.errors import body_of
from dts.serve.job import Piece
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
        found[piece.index] = Piece(piece.index, before.text + piece.text, piece.tokens, piece.finish)
    return found


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
