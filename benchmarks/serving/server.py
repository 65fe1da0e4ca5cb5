"""A `dts serve` process on loopback, and what it takes of memory."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path


class Server:
    """Of the base and the adapters below a folder.  Used as a context, it is ended.  name: of its log there."""

    def __init__(self, folder: Path, *options: str, name: str = "log"):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        words = ["serve", str(folder / "base"), "-a", str(folder / "adapters"), "--port", str(self.port), *options]
        words += ["--device", "cpu", "--drain", "120"]
        self.log = (folder / name).open("w")
        self.process = subprocess.Popen([sys.executable, "-m", "dts", *words], stdout=self.log, stderr=self.log)
        end = time.monotonic() + 120
        while not self.get("/ready"):
            if self.process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"the server did not start: {(folder / name).read_text()[-2000:]}")
            time.sleep(0.2)

    def get(self, path: str) -> str:
        try:
            return urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=10).read().decode()
        except OSError:
            return ""

    def figure(self, name: str) -> float:
        """The sum of one of /metrics' figures."""
        lines = [line for line in self.get("/metrics").splitlines() if line.startswith(f"dts:{name}")]
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.partition(name)[2][:1] in ("{", " "))

    @property
    def nbytes(self) -> int:
        """Of memory, what it shares with others divided among them (Linux)."""
        lines = Path(f"/proc/{self.process.pid}/smaps_rollup").read_text().splitlines()
        return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))

    def end(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(180)

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.end()
        self.log.close()
