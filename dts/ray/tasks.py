"""Calls as Ray tasks: each in a worker of its own, again where one dies, and none stops the others."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from dts.ray.cluster import Cluster, connected, ray_itself

SECONDS = 0.2  # between two words of progress of one task
RETRIES = 3  # times that a call is made again because its worker died
SHOWN = 1.0  # seconds between two looks at what the tasks say
Say = Callable[[str], None]
Told = Callable[[float], None]


def run(
    function: Callable[..., Any],
    calls: Mapping[str, tuple[Any, ...]],
    cluster: Cluster,
    told: Callable[[str, float], None],
    finished: Callable[[str, Any, Exception | None], None],
    say: Say,
) -> None:
    """``function(*call, told, say)`` for each call, as many at once as the cluster has room for.

    The function is told to a worker by its place in its module, and its arguments and what it returns are pickled.
    told: name, share done;  finished: name, and what was returned or the error of Ray, once for each call;
    say: takes what the function says.  Raises ValueError where no machine of a Ray of our own has what a task takes,
    ConnectionError where none answers.
    """
    ray = ray_itself()
    with connected(cluster) as ours:
        if short := _too_small(ray, cluster):
            if ours:
                raise ValueError(short)
            say(f"{short}; the tasks wait until there is one")
        words: dict[str, Any] = {"num_cpus": cluster.cpus, "max_retries": RETRIES, "name": "dts"}
        if cluster.memory is not None:
            words["memory"] = cluster.memory
        from ray.util.queue import Queue

        news = Queue(actor_options={"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1})
        task = ray.remote(**words)(_call)
        waiting = {task.remote(function, name, call, cluster.cpus, news): name for name, call in calls.items()}
        try:
            while waiting:
                done, _ = ray.wait(list(waiting), timeout=SHOWN)
                _tell(news, told, say)
                for one in done:
                    name = waiting.pop(one)
                    try:
                        result, error = ray.get(one), None
                    except Exception as caught:
                        result, error = None, caught
                    finished(name, result, error)
        finally:
            for one in waiting:
                ray.cancel(one, force=True)  # of a Ray that runs on without us
            with suppress(Exception):
                news.shutdown(force=True)


def in_a_line(error: Exception | None) -> str:
    """Why a call did not run to its end: Ray says much of its machinery, and last what it was."""
    cause = getattr(error, "cause", None) or error
    lines = [line.strip() for line in re.sub(r"\x1b\[[\d;]*m", "", str(cause)).splitlines() if line.strip()]
    if absent := re.search(r"No module named '((?:dts|dts_kernels)\b[\w.]*)'", " ".join(lines)):
        where = re.search(r"\bip=([^\s,)]+)", str(error))
        at = f" at {where[1]}" if where else ""
        return f"the machine{at} has no {absent[1]}: dts-merge is to be installed on every machine, the same version"
    return f"Ray could not run it to its end: {type(cause).__name__}: {lines[0] if lines else ''}"


def _tell(news: Any, told: Callable[[str, float], None], say: Say) -> None:
    shares: dict[str, float] = {}
    for name, what in news.get_nowait_batch(news.qsize()):
        if isinstance(what, str):
            say(what)
        else:
            shares[name] = what
    for name, share in shares.items():
        told(name, share)


def _too_small(ray: Any, cluster: Cluster) -> str:
    """What no machine that is there now has; nothing where one does."""
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    needed = {"CPU": cluster.cpus} | ({"memory": cluster.memory} if cluster.memory is not None else {})
    if any(all(machine.get(key, 0) >= value for key, value in needed.items()) for machine in machines):
        return ""
    most: Mapping[str, float] = max(machines, key=lambda machine: machine.get("CPU", 0), default={})
    asked = f"{cluster.cpus:g} cores" + ("" if cluster.memory is None else f" and {cluster.memory} bytes")
    return f"no machine has the {asked} that a task takes: the largest has {_in_words(most)}"


def _in_words(machine: Mapping[str, float]) -> str:
    return f"{machine.get('CPU', 0):g} cores and {int(machine.get('memory', 0))} bytes"


def _call(function: Callable[..., Any], name: str, call: tuple[Any, ...], cpus: float, news: Any) -> Any:
    """In the worker."""
    import torch

    torch.set_num_threads(max(1, int(cpus)))
    last = 0.0

    def told(share: float) -> None:
        nonlocal last
        if time.monotonic() - last > SECONDS:
            last = time.monotonic()
            news.put((name, share))

    return function(*call, told, lambda text: news.put((name, text)))
