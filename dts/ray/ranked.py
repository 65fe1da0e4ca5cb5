"""Which replica is the best for a request."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from typing import TypeVar

R = TypeVar("R")


def ranked(
    tasks: Collection[str],
    loads: Mapping[R, int],
    held: Mapping[R, Collection[str]],
    names: Mapping[R, str],
    slack: int,
) -> list[R]:
    """The replicas, the best for a request of these tasks first.

    loads: requests that each has;  held: tasks in its memory;  names: of their own.  Those with at most ``slack``
    requests more than the least busy one go before the others.  Among these: who holds more of the tasks, then, where
    nobody does, the one that the tasks' names draw, the same whoever ranks (rendezvous hashing), so that tasks are
    spread and stay; for the base, and among the busy ones, the least busy.
    """
    least = min(loads.values(), default=0)

    def key(one: R) -> tuple:
        near = loads[one] <= least + slack
        lacking = sum(task not in held[one] for task in tasks) if near else 0
        drawn = near and tasks and lacking == len(tasks)
        return not near, lacking, 0 if drawn else loads[one], _draw(tasks, names[one])

    return sorted(loads, key=key)


def _draw(tasks: Collection[str], name: str) -> bytes:
    return hashlib.sha256("\0".join([*sorted(tasks), name]).encode()).digest()
