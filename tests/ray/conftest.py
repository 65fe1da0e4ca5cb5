"""A real local Ray of several processes, small and at home, for all tests of a run."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.dts.cli.conftest import dts, models  # noqa: F401  `dts` in this process, and tiny checkpoints: base, one, two
from tests.vllm.conftest import free_port

AGENTS = ("dashboard-agent-grpc", "dashboard-agent-listen", "runtime-env-agent", "metrics-export")
ROOT = Path(__file__).resolve().parents[2]
CORES = 4  # that Ray counts, whatever the machine has: replicas and tasks of small models take little of one


def of_its_own(home: Path) -> dict[str, str]:
    """The environment of a Ray that writes to a folder, and tells nobody."""
    return {
        "HOME": str(home),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_agent_register_timeout_ms": "180000",
        "RAY_worker_niceness": "0",  # Ray would have workers wait for whatever else there is
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "PYTHONPATH": str(ROOT),
    }


def agents() -> list[str]:
    """With ports that are given nobody waits for files that say which they are: a busy machine is too slow for that."""
    return [f"--{what}-port={free_port()}" for what in AGENTS]


@pytest.fixture(autouse=True, scope="session")
def at_home(tmp_path_factory):
    """For all that these tests start, and for themselves."""
    kept = dict(os.environ)
    os.environ |= of_its_own(tmp_path_factory.mktemp("home")) | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    os.environ.pop("RAY_ADDRESS", None)
    yield
    os.environ.clear()
    os.environ |= kept


@contextmanager
def started(name: str, **environment: str):
    """The address of a Ray that runs as one does on a cluster's first machine."""
    port = free_port()
    words = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", f"--port={port}"]
    words += [f"--num-cpus={CORES}", f"--object-store-memory={100 << 20}", "--include-dashboard=false", *agents()]
    log = Path(os.environ["HOME"]) / f"{name}.log"
    with log.open("w") as out:
        process = subprocess.Popen(words, stdout=out, stderr=out, env=os.environ | environment)
    try:
        until = time.monotonic() + 120
        while "runtime started" not in log.read_text():
            assert process.poll() is None and time.monotonic() < until, log.read_text()
            time.sleep(0.2)
        yield f"127.0.0.1:{port}"
    finally:
        process.send_signal(signal.SIGTERM)  # it ends what it started
        process.wait(60)


@pytest.fixture(scope="session")
def head(at_home):
    """The address of a Ray for all tests."""
    with started("head") as address:
        yield address


@pytest.fixture(scope="session")
def joined(head):
    """This process is one of the Ray's."""
    import ray

    ray.init(address=head, log_to_driver=False, logging_level="ERROR")
    yield head
    ray.shutdown()


def processes(home: str | Path) -> dict[int, str]:
    """Command lines of those that were started with this home."""
    found = {}
    for one in Path("/proc").glob("[0-9]*"):
        try:
            if f"HOME={home}".encode() in (one / "environ").read_bytes().split(b"\0"):
                found[int(one.name)] = (one / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
    return found
