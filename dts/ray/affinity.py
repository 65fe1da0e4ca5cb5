"""Which replica gets a request: one that holds its tasks, unless it is much busier than another.

Ray's model multiplexing was looked at (2.60) and is not used.  It knows one model a request, and a mixture has several;
a replica keeps its models in a cache that counts them, beside the engine's, which counts bytes; and a request waits up
to two seconds for a replica that holds its model while others are free.  Batches would be whole with it too: they are
made in the engine, of rows of any tasks, and neither it nor this router, which is Ray's own way of choosing otherwise
(`ray.serve.request_router`), does more than choose a replica.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from typing import Any

from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

from dts.ray.ranked import ranked

SOON = 1.0  # seconds within which what was chosen is sent, or was for another
REMEMBERED = 10.0  # seconds for which a task counts as held where it was sent to, until the replica says so itself


class Affinity(RequestRouter):
    """For requests of `Engine.answer`, whose last argument names the tasks.  slack: see `ranked`."""

    def initialize_state(self, slack: int = 8) -> None:
        self.slack = slack
        self.sent: dict[tuple[str, ReplicaID], float] = {}  # when a task's request last went to a replica
        self.chosen: dict[ReplicaID, list[float]] = {}  # when it was chosen for requests that were not sent yet

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """A replica a rank, the best first: one that is full is passed over for the next."""
        if pending_request is not None:
            pending_request.routing_context.should_backoff = True  # where all are full, or Ray asks again at once
        now = time.monotonic()
        self.sent = {at: when for at, when in self.sent.items() if now - when < REMEMBERED}
        self.chosen = {at: [one for one in times if now - one < SOON] for at, times in self.chosen.items()}
        there = {one.replica_id: one for one in candidate_replicas}
        # of many that come at once Ray counts none before all have chosen
        loads = {one: (self.replica_queue_len_cache.get(one) or 0) + len(self.chosen.get(one, ())) for one in there}
        held = {
            one: {*replica.routing_stats.get("tasks", ()), *(task for task, at in self.sent if at == one)}
            for one, replica in there.items()
        }
        names = {one: one.unique_id for one in there}
        found = ranked(_tasks(pending_request), loads, held, names, self.slack)
        if found:
            self.chosen.setdefault(found[0], []).append(now)
            for task in _tasks(pending_request):
                self.sent[task, found[0]] = now
        return [[there[one]] for one in found]

    def on_send_request(self, replica_id: ReplicaID) -> None:
        """From now on Ray counts it."""
        super().on_send_request(replica_id)
        if times := self.chosen.get(replica_id):
            times.pop(0)

    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, result: Any) -> None:
        for task in _tasks(pending_request):
            self.sent[task, replica_id] = time.monotonic()


def _tasks(request: PendingRequest | None) -> Collection[str]:
    last = request.args[-1] if request is not None and request.args else ()
    return last if isinstance(last, tuple) else ()
