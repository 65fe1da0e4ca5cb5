"""How bodies are read: JSON in which nothing is said twice.

Of two equal names most readers take the last, some the first: a proxy that looks who may ask for which task would let
another through.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute

from dts.serve.refused import Refused


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of its names and values; raises Refused where a name is there twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        name, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise Refused(f"the body says {name[:100]!r} twice in one object", code="invalid_json", param=name[:100])
    return found


class _Read(Request):
    async def json(self) -> Any:
        if not hasattr(self, "_json"):
            self._json = json.loads(await self.body(), object_pairs_hook=_once)
        return self._json


class Reading(APIRoute):
    """A route whose body is read so."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def read(request: Request) -> Response:
            return await handle(_Read(request.scope, request.receive))

        return read
