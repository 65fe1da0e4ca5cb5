"""`serve run` with two applications on a Ray that runs: language models in two replicas, and an encoder below /two."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from http.client import HTTPException
from pathlib import Path
from typing import Any

import yaml

from tests.ray.conftest import processes
from tests.vllm.conftest import free_port

KEY, ADMIN = "a key of callers 123", "a key of admins 4567"
START = 300  # seconds that a start may take where other programs run too


class Serving:
    """port: of HTTP;  adapters: of the language model, a folder of its own."""

    def __init__(self, folder: Path, address: str, decoder: Any, encoder: Any, adapters: Path):
        self.port, self.log, self.adapters = free_port(), folder / "log", adapters
        (folder / "api").write_text(KEY)
        (folder / "admin").write_text(ADMIN)
        keys = {"api_keys": "api", "admin_keys": "admin"}
        common = {"device": "cpu", "cpus": 0.5, "timeout": 120}
        one = {"model": str(decoder.base), "adapters": str(adapters), "replicas": 2, "slack": 2, **keys, **common}
        two = {"model": str(encoder.base), "adapters": str(encoder.adapters), "admin_keys": "admin", **common}
        two |= {"max_replicas": 2, "target": 1}
        self.config = {
            "http_options": {"host": "127.0.0.1", "port": self.port},
            "applications": [
                {"name": "one", "route_prefix": "/", "import_path": "dts.ray.app:app", "args": one},
                {"name": "two", "route_prefix": "/two", "import_path": "dts.ray.app:app", "args": two},
            ],
        }
        for where in (one, two):  # a place from the root on, as the applications are built in a worker
            where |= {key: str(folder / where[key]) for key in keys if key in where}
        (folder / "app.yaml").write_text(yaml.safe_dump(self.config))
        words = [sys.executable, "-m", "ray.serve.scripts", "run", "--address", address, "app.yaml"]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(words, cwd=folder, stdout=log, stderr=log)
        self.until(lambda: self.get("/ready")[0] == self.get("/two/ready")[0] == 200, START)

    def until(self, what, seconds: float = 60) -> None:
        """Waits for it to be so."""
        end = time.monotonic() + seconds
        while not what():
            assert self.process.poll() is None and time.monotonic() < end, self.log.read_text()[-6000:]
            time.sleep(0.2)

    def ask(self, path: str, content: dict | None = None, key: str = KEY) -> tuple[int, Any]:
        """(status, answer)"""
        headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
        body = None if content is None else json.dumps(content).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", body, headers)
        try:
            with urllib.request.urlopen(request, timeout=150) as answer:
                status, text = answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            status, text = error.code, error.read().decode()
        except (OSError, HTTPException) as error:  # the latter where a body breaks off
            return 0, str(error)
        try:
            return status, json.loads(text)
        except ValueError:
            return status, text

    def get(self, path: str, key: str = KEY) -> tuple[int, Any]:
        return self.ask(path, None, key)

    def admin(self, what: str, **content) -> tuple[int, Any]:
        return self.ask(f"/admin/{what}", content, ADMIN)

    def state(self) -> dict[str, dict]:
        """Of each replica that is there."""
        status, found = self.get("/admin/state", ADMIN)
        return found["replicas"] if status == 200 else {}

    def client(self, key: str = KEY):
        import openai

        return openai.OpenAI(base_url=f"http://127.0.0.1:{self.port}/v1", api_key=key, max_retries=0, timeout=150)


def engines(app: str = "one", what: str = "Engine") -> list[int]:
    """Processes of the replicas, or of another part of an application."""
    name = f"ray::ServeReplica:{app}:{what}"
    return [number for number, words in processes(os.environ["HOME"]).items() if words.startswith(name)]
