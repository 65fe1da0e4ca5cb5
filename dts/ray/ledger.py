"""What administrators did, for all replicas: one process has each do it, in one order, and tells those that come later.

Only names that were given to adapters and what is pinned last; what is in memory is each replica's own affair.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from dts.serve.refused import Refused

State = dict[str, Any]  # given: a place for each name;  pinned: names


@dataclass(frozen=True)
class Answer:
    """Of a route.  kind: its content type."""

    status: int
    kind: bytes
    body: bytes


@dataclass(frozen=True)
class Reply:
    """Of a replica to a command.  version: of its state before it;  before, after: the state."""

    replica: str
    answer: Answer
    version: int
    before: State
    after: State


class Ledger:
    """version: of the state, which grows; who has a higher one is right, so that a ledger that was lost learns it again
    from any replica.  seconds: that a replica may take for a command."""

    def __init__(self, seconds: float):
        self.seconds = seconds
        self.engine: Any = None  # a handle, when it is first needed
        self.version, self.state = 0, dict[str, Any]()
        self._turn = asyncio.Lock()

    async def sync(self, version: int, state: State) -> tuple[int, State]:
        """Of two versions the higher, and its state."""
        if version > self.version:
            self.version, self.state = version, state
        return self.version, self.state

    async def command(self, scope: dict[str, Any], body: bytes) -> Answer:
        """Has every replica answer an admin's request; what he is told.

        What not all could do is undone in those that did it.
        """
        async with self._turn:
            replies = await self._all("command", scope, body)
            if not replies:
                raise Refused("no replica is there yet: ask again later", 503, "starting", retry_after=5)
            done = [reply for reply in replies if reply.answer.status < 400]
            grave = [reply for reply in replies if reply.answer.status >= 400 and not (done and _harmless(reply, body))]
            if done and scope["method"] != "GET":
                before = max(replies, key=lambda reply: reply.version)
                after = max(done, key=lambda reply: reply.version)
                self.version = max(self.version, before.version) + 1
                self.state = before.before if grave else after.after
                await self._all("agree", self.version, self.state)
            if grave:
                return grave[0].answer
            if not done[0].answer.kind.startswith(b"application/json"):
                return done[0].answer
            each = {reply.replica: json.loads(reply.answer.body) for reply in done}
            return replace(done[0].answer, body=json.dumps({"replicas": each}).encode())

    async def _all(self, method: str, *arguments: Any) -> list[Any]:
        """What each replica returns; those that die meanwhile are none."""
        from ray import serve

        # by its name, as the replicas have this one's handle
        self.engine = self.engine or serve.get_deployment_handle("Engine", serve.get_replica_context().app_name)
        told = self.engine.broadcast(method, *arguments)
        found = await told.results_async(timeout_s=self.seconds, return_exceptions=True)
        return without_dead(found)


def without_dead(found: Sequence[Any]) -> list[Any]:
    """What replicas returned, those that died left out; raises what else one raised."""
    from ray.exceptions import RayActorError

    for one in found:
        if isinstance(one, Exception) and not isinstance(one, RayActorError):
            raise one
    return [one for one in found if not isinstance(one, Exception)]


def _harmless(reply: Reply, body: bytes) -> bool:
    """A replica had nothing to do, where another had: to load what is loaded, to unload what is not.

    That a name is taken is not harmless where it was to mean another place.
    """
    code = json.loads(reply.answer.body)["error"]["code"]
    return code == "not_loaded" or (code == "already_loaded" and json.loads(body).get("path") is None)
