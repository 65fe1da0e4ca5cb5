"""A Ray to work on: one that runs somewhere, or one of this machine's own that is there while it is used."""

from __future__ import annotations

import logging
import math
import os
import re
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from dts.files import expanded

OBJECTS = 100 << 20  # bytes of the object store of a Ray of our own: what goes through it are small results
REACH = 10.0  # seconds that a machine may take to answer


@dataclass(frozen=True)
class Cluster:
    """address: of a Ray that runs, as ``ray.init`` takes it; None: what RAY_ADDRESS says, or else one of its own on
    this machine;  cpus, memory: cores and bytes that a task takes, by which Ray counts how many run at once."""

    address: str | None = None
    cpus: float = 1
    memory: int | None = None

    def __post_init__(self) -> None:
        wrong = []
        if not 0 < self.cpus < math.inf or (self.cpus > 1 and self.cpus != int(self.cpus)):
            wrong.append(f"a task takes a part of a core, or whole ones, not {self.cpus:g}")
        if self.memory is not None and self.memory < 1:
            wrong.append(f"a task takes some memory, not {self.memory} bytes")
        if wrong:
            raise ValueError("; ".join(wrong))


def ray_itself() -> Any:
    """The package; raises ImportError that names the extra."""
    try:
        import ray
    except ImportError:
        raise ImportError("this needs Ray: pip install 'dts-merge[ray]'") from None
    return ray


def from_root(source: str) -> str:
    """A place on disk from the root on, as workers have folders of their own; anything else as it is."""
    from dts.checkpoint.files import split_state

    return os.path.abspath(expanded(source)) if expanded(split_state(source)[0]).exists() else source


def _reach(address: str) -> None:
    """Raises ConnectionError where nobody listens: Ray itself would try for minutes."""
    if found := re.fullmatch(r"(?:ray://)?\[?([^/]+?)\]?:(\d+)", address):
        try:
            socket.create_connection((found[1], int(found[2])), REACH).close()
        except (OSError, OverflowError) as error:
            raise ConnectionError(f"no Ray answers at {address}: {error}") from None


@contextmanager
def _whole() -> Iterator[None]:
    """An interruption waits for the end of this."""
    heard: list[int] = []
    if threading.current_thread() is not threading.main_thread():  # others are not interrupted
        yield
        return
    before = signal.signal(signal.SIGINT, lambda number, frame: heard.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if heard:
            ray_itself().shutdown()
            raise KeyboardInterrupt


@contextmanager
def connected(cluster: Cluster) -> Iterator[bool]:
    """While a Ray is there; yields whether it is one of our own, which ends with this.

    Raises ConnectionError where none answers at the address, and where one of this machine's own does not start.
    """
    ray = ray_itself()
    if ray.is_initialized():  # whoever did that ends it too
        yield False
        return
    address = cluster.address or os.environ.get("RAY_ADDRESS") or "local"
    ours = address == "local"
    words: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if ours:
        words |= {"include_dashboard": False, "object_store_memory": OBJECTS}
    if not ours:
        _reach(address)
    try:
        with _whole():  # of a start that is broken off, processes are left
            ray.init(address=address, **words)
    except Exception as error:  # of many kinds, as there are many ways to connect
        why = str(error).partition("\n")[0] or type(error).__name__
        if ours:
            slow = "; on a busy machine it may come later: try again" if "timed out" in why else ""
            raise ConnectionError(f"Ray did not start on this machine: {why}{slow}") from None
        token = "; one that wants a token wants RAY_AUTH_MODE=token here too"
        raise ConnectionError(f"no Ray answers at {address}: {why}{token}") from None
    try:
        yield ours
    finally:
        ray.shutdown()
