"""Programs that a model wrote, run where they can harm little: in a process of their own with little time and memory,
no network, an empty folder and no environment."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile

SECONDS, BYTES, FILE_BYTES = 10, 1 << 30, 1 << 20
NO_NETWORK = "this machine lets no process give up its network"
MARK = "\0passed\0"  # printed behind the tests: a program that ends by itself before them did not pass

LAUNCHER = """
import ctypes, os, resource, sys
seconds, size, file, isolated = map(int, sys.argv[1:5])
if not isolated:
    libc = ctypes.CDLL(None, use_errno=True)
    # a network of its own, which has none: by its own right, or by that of a user of its own
    if libc.unshare(0x40000000) and libc.unshare(0x10000000 | 0x40000000):
        os._exit(97)
resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
resource.setrlimit(resource.RLIMIT_AS, (size, size))
resource.setrlimit(resource.RLIMIT_FSIZE, (file, file))
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
exec(compile(sys.stdin.read(), "answer", "exec"), {"__name__": "answer"})
"""


class NotIsolated(RuntimeError):
    """Nothing was run: the network could not be taken away."""


def passes(program: str, tests: str, seconds: int = SECONDS, size: int = BYTES, isolated: bool = False) -> bool:
    """Does the program run through the tests without an error?

    seconds: of CPU, and twice as many on the clock;  size: bytes of memory;  isolated: this machine has no network that
    matters (a container without one), so that none is taken away.
    Raises NotIsolated where the network cannot be taken away and nobody said that there is none.
    """
    text = f"{program}\n\n{tests}\n\nimport sys\nsys.stdout.write({MARK!r})\nsys.stdout.flush()\n"
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-I", "-c", LAUNCHER, *map(str, (seconds, size, FILE_BYTES, int(isolated)))]
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env={"PATH": "/usr/bin:/bin", "HOME": folder, "OMP_NUM_THREADS": "1"},
            start_new_session=True,
        )
        try:
            said, _ = process.communicate(text.encode(), timeout=2 * seconds)
        except subprocess.TimeoutExpired:
            return False
        finally:
            _end(process)
    if process.returncode == 97:
        raise NotIsolated(
            f"{NO_NETWORK}: run the benchmark in a container that has none (docker run --network none), and say "
            "--isolated"
        )
    return process.returncode == 0 and said.endswith(MARK.encode())


def _end(process: subprocess.Popen) -> None:
    """Of the process and of those that it started: they are a session of their own."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.communicate()
