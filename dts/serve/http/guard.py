"""What every request passes before a route sees it: an id, its key, the size of its body; a line in the log after."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import logging
import re
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dts.serve.http.errors import answer, internal
from dts.serve.refused import Refused

log = logging.getLogger("dts.serve.access")
OPEN = {"/health", "/ready", "/"}  # for whoever watches that the server is there; a page that says nothing of it
ADMIN = {"/v1/load_lora_adapter", "/v1/unload_lora_adapter"}  # beside all below /admin/
LOOK = 0.5  # seconds between two looks at whether the server stops, for who waits for a body
BODIES = 64  # of the largest size, that may be on their way: a thousand slow ones would take a gigabyte
SMALL = 1 << 16  # bytes of a body that always has room
REQUEST_ID = re.compile(rb"[\w.-]{1,64}", re.ASCII)


def is_admin(path: str) -> bool:
    return path in ADMIN or path == "/admin" or path.startswith("/admin/")


class Keys:
    """api: of callers, none: everybody may call;  admin: of those who load and unload, none: nobody may."""

    def __init__(self, api: Sequence[str], admin: Sequence[str]):
        self._api, self._admin = [_digest(key.encode()) for key in api], [_digest(key.encode()) for key in admin]

    def check(self, path: str, authorization: bytes) -> None:
        """Raises Refused: 401 or 403."""
        if path in OPEN:
            return
        scheme, _, key = authorization.partition(b" ")
        given = _digest(key.strip()) if scheme.lower() == b"bearer" else b""
        admin, api = _is_one_of(given, self._admin), _is_one_of(given, self._api)
        if is_admin(path):
            if not self._admin:
                raise Refused("this server was started without --admin-keys: nobody may load or unload", 403)
            if not admin:
                raise Refused("this needs one of the keys of --admin-keys", 403 if api else 401, "invalid_api_key")
        elif self._api and not (admin or api):
            raise Refused("no valid key: send Authorization: Bearer KEY", 401, "invalid_api_key")


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()  # of one length, so that comparing takes one time


def _is_one_of(given: bytes, keys: Sequence[bytes]) -> bool:
    found = False
    for key in keys:  # all of them, whichever it is
        found |= hmac.compare_digest(given, key)
    return found


class Guard:
    """An ASGI application around another.  largest: bytes of a body;  seconds: that it may take to come;  refused:
    told the status of each refusal;  stopping: whether a body that has not come yet is waited for no longer."""

    def __init__(
        self,
        app: ASGIApp,
        keys: Keys,
        largest: int,
        seconds: float,
        refused: Callable[[int], None] = lambda status: None,
        stopping: Callable[[], bool] = lambda: False,
    ):
        self.app, self.keys, self.largest, self.seconds = app, keys, largest, seconds
        self.refused, self.stopping = refused, stopping
        self.held = 0  # bytes of bodies of which a part has come

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        headers = dict(scope["headers"])
        given = headers.get(b"x-request-id", b"")
        request_id = given.decode() if REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        scope["state"] = {**scope.get("state", {}), "request_id": request_id}
        begun, status, whole = time.monotonic(), 0, False

        async def send_on(message: Message) -> None:
            nonlocal status, whole
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": [*message["headers"], (b"x-request-id", request_id.encode())]}
            await send(message)
            whole = message["type"] == "http.response.body" and not message.get("more_body", False)

        try:
            try:
                if b"content-length" in headers and b"transfer-encoding" in headers:
                    raise Refused("a body has a length or comes in chunks, not both", 400, "invalid_http")
                self.keys.check(scope["path"], headers.get(b"authorization", b""))
                body = await self._body(headers, receive)
            except Refused as error:
                told = answer(error)
                if error.code == "invalid_http":  # where the next request begins is not certain
                    told.headers["Connection"] = "close"
                await told(scope, receive, send_on)
            else:
                await self.app(scope, _again(body, receive), send_on)
        except Exception as error:
            log.error("request %s failed", request_id, exc_info=error)
            if whole:
                return
            if status:  # the answer has begun: it can only be broken off
                raise
            await answer(internal(request_id))(scope, receive, send_on)
        finally:
            if status >= 400:
                self.refused(status)
            about: dict[str, Any] = {"id": request_id, "method": scope["method"], "path": scope["path"][:200]}
            about |= {"status": status, "seconds": round(time.monotonic() - begun, 4)}
            log.info(json.dumps(about))

    async def _body(self, headers: dict[bytes, bytes], receive: Receive) -> bytes:
        """All of it; raises Refused: 413 as soon as it is known to be too large, 408 where it does not come, 503 where
        the server stops before it has."""
        too_large = Refused(f"the body has more than {self.largest} bytes", 413, "body_too_large")
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length[:20]) > self.largest:
            raise too_large
        body, more, deadline = bytearray(), True, time.monotonic() + self.seconds
        try:
            while more:
                message = await self._next(receive, deadline)
                if message["type"] == "http.disconnect":
                    break
                part, more = message.get("body", b""), message.get("more_body", False)
                body += part
                self.held += len(part)
                if len(body) > self.largest:
                    raise too_large
                if len(body) > SMALL and self.held > BODIES * self.largest:
                    raise Refused("too many bodies are on their way: ask again later", 503, "busy", retry_after=1)
        finally:
            self.held -= len(body)
        return bytes(body)

    async def _next(self, receive: Receive, deadline: float) -> Message:
        """A client that sends half of a request and waits would keep the server from stopping."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(min(LOOK, self.seconds)):
                    return await receive()
            if self.stopping():
                raise Refused("the server is stopping", 503, "stopping", retry_after=5)
            if time.monotonic() >= deadline:
                raise Refused(f"the body did not come in {self.seconds:g} seconds", 408, "request_timeout")


def _again(body: bytes, receive: Receive) -> Receive:
    """Gives the body that was read, and after it what comes: that the client has gone."""
    first = True

    async def again() -> Message:
        nonlocal first
        if first:
            first = False
            return {"type": "http.request", "body": body, "more_body": False}
        return await receive()

    return again
