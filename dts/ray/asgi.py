"""One call of an ASGI application as messages, so that a request can be answered in another process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

from starlette.types import ASGIApp, Message, Scope

from dts.ray.ledger import Answer

PLAIN = ("type", "asgi", "http_version", "method", "scheme", "path", "raw_path", "query_string", "headers")
GRACE = 5.0  # seconds that a call may take to end itself when nobody waits for it any more


def plain(scope: Scope, request_id: str) -> dict[str, Any]:
    """What of a scope can be sent; the request keeps its id."""
    found = {key: scope[key] for key in PLAIN if key in scope}
    others = [(name, value) for name, value in scope["headers"] if name != b"x-request-id"]
    return found | {"headers": [*others, (b"x-request-id", request_id.encode())]}


async def messages(app: ASGIApp, scope: Scope, body: bytes) -> AsyncIterator[Message]:
    """What the application sends.  Whoever stops reading is, to the application, a client that has gone."""
    told, gone = asyncio.Queue[Message | None](), asyncio.Event()
    begun = False

    async def receive() -> Message:
        nonlocal begun
        if not begun:
            begun = True
            return {"type": "http.request", "body": body, "more_body": False}
        await gone.wait()
        return {"type": "http.disconnect"}

    async def call() -> None:
        try:
            await app(scope, receive, told.put)
        finally:
            told.put_nowait(None)

    task = asyncio.ensure_future(call())
    try:
        while (message := await told.get()) is not None:
            yield message
        await task  # raises what it raised
    finally:
        gone.set()
        if not task.done():
            await asyncio.wait([task], timeout=GRACE)
            task.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await task


async def whole(app: ASGIApp, scope: Scope, body: bytes) -> Answer:
    status, kind, parts = 500, b"", []
    async for message in messages(app, scope, body):
        if message["type"] == "http.response.start":
            status, kind = message["status"], dict(message["headers"]).get(b"content-type", b"")
        else:
            parts.append(message.get("body", b""))
    return Answer(status, kind, b"".join(parts))
