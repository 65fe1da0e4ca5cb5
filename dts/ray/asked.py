"""Which tasks a request asks for."""

from __future__ import annotations

import json

from dts.serve.choice import choice_of


def tasks_of(body: bytes, base_name: str) -> tuple[str, ...]:
    """The tasks that a request asks for; none where it is for a replica to say what is wrong with it."""
    try:
        return tuple(choice_of(json.loads(body)["model"], base_name).tasks)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return ()
