"""Where requests come in: each goes to a replica that holds its tasks, an administrator's to all of them.

Ray's proxy routes before a body is read, and the body names the model: so this reads it, and a handle's router chooses.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST
from ray.exceptions import RayActorError, RayTaskError
from ray.serve.exceptions import BackPressureError
from ray.serve.handle import DeploymentHandle
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dts.ray.asgi import plain
from dts.ray.asked import tasks_of
from dts.ray.figures import merged
from dts.ray.ledger import without_dead
from dts.ray.settings import Settings
from dts.serve.http.asking import GRACE
from dts.serve.http.errors import answer, body_of
from dts.serve.http.guard import Guard, Keys, is_admin
from dts.serve.options import keys_of
from dts.serve.refused import Refused

PROBES = {"/health", "/ready"}
SECONDS = 5.0  # that a replica may take to say that it is well, or what its figures are


class _Unprefixed:
    """An application below a prefix: routes have their own names there too, as the guard knows an administrator's by
    them."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (root := scope.get("root_path", "")):
            path = scope["path"].removeprefix(root) or "/"
            scope = {**scope, "root_path": "", "path": path, "raw_path": path.encode()}
        await self.app(scope, receive, send)


class Front:
    """An ASGI application behind `dts serve`'s guard.  The replicas have guards of their own."""

    def __init__(self, settings: dict[str, Any], engine: DeploymentHandle, ledger: DeploymentHandle):
        self.options = Settings.model_validate(settings).options()
        self.engine, self.ledger = engine.options(stream=True), ledger
        keys = Keys(keys_of(self.options.api_keys), keys_of(self.options.admin_keys))
        limits = self.options.limits
        self._app = _Unprefixed(Guard(self._inside, keys, limits.body, limits.seconds))

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """Ray asks for it."""
        return self._app

    async def _inside(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await _nothing(scope, receive, send)
        body = (await receive()).get("body", b"")  # the guard has read it whole
        asked = plain(scope, scope["state"]["request_id"])
        try:
            if scope["path"] == "/metrics":
                found = await self.engine.broadcast("figures").results_async(timeout_s=SECONDS, return_exceptions=True)
                text = merged(without_dead(found))
                await Response(text, media_type=CONTENT_TYPE_LATEST)(scope, receive, send)
            elif is_admin(scope["path"]):
                told = await asyncio.wait_for(self.ledger.command.remote(asked, body), self.options.limits.seconds)
                headers = {"content-type": told.kind.decode()}
                await Response(told.body, told.status, headers)(scope, receive, send)
            else:
                await self._forward(asked, body, receive, send)
        except Exception as error:
            refused = _refused(error.cause if isinstance(error, RayTaskError) else error)
            if refused is None:
                raise
            await answer(refused)(scope, receive, send)

    async def _forward(self, scope: Scope, body: bytes, receive: Receive, send: Send) -> None:
        """To one replica and back, until the client has gone."""
        seconds = SECONDS if scope["path"] in PROBES else self.options.limits.seconds + 2 * GRACE
        call = asyncio.ensure_future(self._answer(scope, body, send, seconds))
        gone = asyncio.ensure_future(_gone(receive))
        try:
            await asyncio.wait([call, gone], return_when=asyncio.FIRST_COMPLETED)
            if call.done():
                call.result()
        finally:
            for task in (call, gone):
                task.cancel()
            await asyncio.gather(call, gone, return_exceptions=True)

    async def _answer(self, scope: Scope, body: bytes, send: Send, seconds: float) -> None:
        begun = streams = False
        try:
            async with aclosing(self._messages(scope, body, seconds)) as answers:
                async for message in answers:
                    if message["type"] == "http.response.start":
                        begun = True
                        headers = [one for one in message["headers"] if one[0] != b"x-request-id"]  # the guard adds it
                        streams = dict(headers).get(b"content-type", b"").startswith(b"text/event-stream")
                        message = {**message, "headers": headers}
                    await send(message)
        except Refused as error:
            if not begun:
                raise
            if not streams:  # the guard breaks off the connection
                raise RuntimeError("an answer broke off") from error
            text = f"data: {json.dumps(body_of(error))}\n\n"
            await send({"type": "http.response.body", "body": text.encode(), "more_body": False})

    async def _messages(self, scope: Scope, body: bytes, seconds: float) -> AsyncGenerator[Message]:
        """What a replica answers; raises Refused where there is none, or it dies."""
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        answers = self.engine.answer.remote(scope, body, tasks_of(body, self.options.base_name))
        try:
            while True:
                yield await asyncio.wait_for(anext(answers), end - loop.time())
        except StopAsyncIteration:
            return
        except TimeoutError:
            if scope["path"] in PROBES:
                raise Refused("no replica answers", 503, "starting", retry_after=5) from None
            raise Refused("the request took longer than it may", 504, "timeout") from None
        except BackPressureError:
            raise Refused("all replicas are full: ask again later", 429, "queue_full", retry_after=1) from None
        except RayActorError:
            raise Refused("the replica that had this request has died", 503, "replica_died", retry_after=1) from None
        finally:
            with suppress(Exception):
                answers.cancel()  # of no effect where it is over


def _refused(error: Exception) -> Refused | None:
    """What a client is told of an error on the way to replicas; None: of one of ours."""
    if isinstance(error, RayActorError):  # the ledger's: Ray starts another
        return Refused("ask again later", 503, "starting", retry_after=5)
    if isinstance(error, TimeoutError):
        return Refused("not all replicas answered in time", 504, "timeout")
    return error if isinstance(error, Refused) else None


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _nothing(scope: Scope, receive: Receive, send: Send) -> None:
    """Of what is no request: that the application starts and stops is well, other calls are not taken."""
    if scope["type"] == "lifespan":
        for _ in range(2):
            what = (await receive())["type"]
            await send({"type": f"{what}.complete"})
    elif scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.close", "code": 1000})
