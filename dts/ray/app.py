"""``serve run dts.ray.app:app model=... adapters=...``: `dts serve` in replicas that Ray starts, mends and scales."""

from __future__ import annotations

from typing import Any

from ray import serve
from ray.serve import Application
from ray.serve.config import RequestRouterConfig

from dts.ray.affinity import Affinity
from dts.ray.engine import Engine
from dts.ray.front import Front
from dts.ray.ledger import Ledger
from dts.ray.settings import checked

HEALTH = 5.0  # seconds between two looks at a replica's health
NEWS = 1.0  # seconds between two words of a replica on what it holds
STOP = 5.0  # seconds that a replica's end may take after its last answer


def app(settings: dict[str, Any]) -> Application:
    """The application of these settings, see `dts.ray.settings.Settings`.

    Raises ValueError that lists everything that keeps it from starting.
    """
    how = checked(settings)
    options = how.options()
    given = how.model_dump(mode="json")
    batching = options.batching
    size: dict[str, Any] = {"num_replicas": how.replicas}
    if how.max_replicas is not None:
        target = how.target or batching.rows
        scale = {"min_replicas": how.replicas, "max_replicas": how.max_replicas, "target_ongoing_requests": target}
        size = {"autoscaling_config": scale}
    whole = {"graceful_shutdown_timeout_s": options.drain + STOP, "health_check_period_s": HEALTH}
    router = RequestRouterConfig(
        request_router_class=Affinity,
        request_router_kwargs={"slack": how.slack},
        request_routing_stats_period_s=NEWS,
    )
    ledger = serve.deployment(Ledger, name="Ledger").options(
        num_replicas=1,
        ray_actor_options={"num_cpus": 0},
        max_ongoing_requests=1000,
        logging_config={"enable_access_log": False},  # replicas ask it all the time
    )
    engine = serve.deployment(Engine, name="Engine").options(
        **size,
        **whole,
        ray_actor_options={"num_cpus": how.cpus, "num_gpus": how.gpus},
        max_ongoing_requests=batching.queue + batching.rows,  # of a row at least each: its own queue is full before
        max_queued_requests=batching.queue,
        request_router_config=router,
    )
    front = serve.deployment(serve.ingress()(Front), name="Front").options(
        num_replicas=how.fronts,
        **whole,
        ray_actor_options={"num_cpus": 0},
        max_ongoing_requests=1_000_000,  # what is too much is told 429, which waits for nobody
    )
    bound = ledger.bind(options.limits.seconds)
    return front.bind(given, engine.bind(given, bound), bound)
