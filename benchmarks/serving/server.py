"""A `dts serve` process on loopback, and what it takes of memory; vLLM's server of the same base and adapters."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Self


class Process:
    """A server on a port of its own.  Used as a context, it is ended.

    words: its command, which ends with the port;  log: file of what it prints;  ready: the route that says 200 once it
    answers.
    """

    START = 120  # seconds

    def __init__(self, words: list[str], log: Path, ready: str, variables: dict[str, str] | None = None):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.log = log.open("w")
        self.process = subprocess.Popen(
            [*words, str(self.port)],
            stdout=self.log,
            stderr=self.log,
            env=os.environ | (variables or {}),
            start_new_session=True,  # Ctrl-C is this process's, which ends the server itself
        )
        end = time.monotonic() + self.START
        while self.get(ready) is None:
            if self.process.poll() is not None or time.monotonic() > end:
                self.process.kill()
                self.log.close()
                raise RuntimeError(f"the server did not start: {log.read_text('utf-8', 'replace')[-2000:]}")
            time.sleep(0.2)

    def get(self, path: str) -> str | None:
        """What it says there; None where it says nothing, or an error."""
        try:
            return urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=10).read().decode()
        except OSError:
            return None

    def end(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(180)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.end()
        self.log.close()


class Server(Process):
    """`dts serve` of the base and the adapters below a folder.  name: of its log there."""

    def __init__(self, folder: Path, *options: str, name: str = "log"):
        words = ["serve", str(folder / "base"), "-a", str(folder / "adapters"), *options]
        words += ["--device", "cpu", "--drain", "120", "--port"]
        super().__init__([sys.executable, "-m", "dts", *words], folder / name, "/ready")

    def figure(self, name: str) -> float:
        """The sum of one of /metrics' figures."""
        lines = [line for line in (self.get("/metrics") or "").splitlines() if line.startswith(f"dts:{name}")]
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.partition(name)[2][:1] in ("{", " "))

    @property
    def nbytes(self) -> int:
        """Of memory, what it shares with others divided among them (Linux)."""
        lines = Path(f"/proc/{self.process.pid}/smaps_rollup").read_text().splitlines()
        return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))

    @property
    def files(self) -> int:
        """That it has open (Linux)."""
        return len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))


class VLLM(Process):
    """vLLM's own server of them, in float32 on a CPU, with the plugin of this package.

    python: of an environment that has both;  mode: "packed", or "lora", each adapter as a LoRA, without its norms;
    rows: of its batches;  tasks: in memory;  rank: of the adapters.
    """

    START = 600

    def __init__(self, python: Path, folder: Path, mode: str, rows: int, tasks: int, rank: int):
        words = ["-m", "vllm.entrypoints.openai.api_server", "--model", str(folder / "base"), "--dtype", "float32"]
        words += ["--host", "127.0.0.1", "--max-model-len", "256", "--max-num-seqs", str(rows)]
        words += ["--enable-lora", "--max-loras", str(tasks), "--max-cpu-loras", str(tasks)]
        words += ["--max-lora-rank", str(next(size for size in (8, 16, 32, 64, 128, 256, 320, 512) if size >= rank))]
        words += ["--enforce-eager"] * (mode == "packed")
        variables = {
            "DTS_VLLM_ADAPTERS": str(folder / "adapters"),
            "DTS_VLLM_MODE": mode,
            "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
            "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "VLLM_NO_USAGE_STATS": "1",
            "HF_HUB_OFFLINE": "1",
        }
        super().__init__([str(python), *words, "--port"], folder / f"log-vllm-{mode}", "/health", variables)
