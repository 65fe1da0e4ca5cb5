"""The application: all routes, behind the guard."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, FastAPI, Response
from fastapi.routing import APIRoute
from prometheus_client import CONTENT_TYPE_LATEST

from dts import __version__
from dts.serve.engine import Engine
from dts.serve.http import admin, encoding, generation, models, page
from dts.serve.http.asking import Asking
from dts.serve.http.errors import handle
from dts.serve.http.guard import Guard, Keys
from dts.serve.metrics import Metrics
from dts.serve.refused import Refused
from dts.serve.start import Served


def application(
    served: Served, metrics: Metrics, api_keys: Sequence[str] = (), admin_keys: Sequence[str] = ()
) -> Guard:
    """An ASGI application; the engine is to be started and drained by whoever runs it."""
    metrics.watch(served.engine)
    app = FastAPI(title="dts serve", version=__version__, docs_url=None, redoc_url=None, redirect_slashes=False)
    asking, engine = Asking(served, metrics), served.engine
    routers = [part.routes(asking) for part in (models, generation, encoding, admin)]
    routers += [page.routes(), _watching(engine, metrics)]
    for router in routers:
        app.include_router(router)
    handle(app, sorted(route.path for router in routers for route in router.routes if isinstance(route, APIRoute)))
    keys, limits = Keys(api_keys, admin_keys), served.options.limits
    return Guard(app, keys, limits.body, limits.seconds, metrics.refused, lambda: engine.draining)


def _watching(engine: Engine, metrics: Metrics) -> APIRouter:
    """What those ask who watch the server, some of them for no body (HEAD)."""
    router = APIRouter()

    @router.head("/health", include_in_schema=False)
    @router.get("/health")
    def health() -> Any:
        """Can it still answer?"""
        if not engine.alive:
            raise Refused("the engine has stopped", 503, "stopped")
        return {"status": "ok"}

    @router.head("/ready", include_in_schema=False)
    @router.get("/ready")
    def ready() -> Any:
        """Should it be sent requests?"""
        if not engine.alive or engine.draining:
            raise Refused("the server is stopping", 503, "stopping")
        return {"status": "ready"}

    @router.get("/metrics")
    def figures() -> Response:
        return Response(metrics.text(), media_type=CONTENT_TYPE_LATEST)

    return router
