"""vLLM on a real local Ray, by the commands of docs/deploy.md: in replicas of Ray Serve LLM, and in Ray's workers."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException
from pathlib import Path

import pytest
import yaml

from tests.ray.conftest import agents, of_its_own, processes
from tests.vllm.conftest import PROMPTS, START, Server, as_found, end, environment, free_port, on_ray
from tests.vllm.test_packed import WITHIN

pytestmark = pytest.mark.vllm
SMALL = {"dtype": "float32", "max_model_len": 128, "max_num_seqs": 8}
TASKS = {"rhyme": "a", "prose": "b", "base": None}  # as the page calls them -> those of `models`


def page(words: str) -> str:
    """The one block of the page with these words."""
    (found,) = [text for text in on_ray() if words in text]
    return found


class Ray:
    """A Ray that was started as the page says, in a folder that has what the page has; port: of the server to start."""

    def __init__(self, folder: Path, models):
        self.folder, self.port, ha = folder, 0, folder / "ha"
        self.socket = tempfile.mkdtemp(prefix="ha")  # a socket's path may have 107 characters
        shutil.copytree(models.base, folder / "chat" / "base")
        for name, task in TASKS.items():
            if task:
                shutil.copytree(models.adapters / task, folder / "chat" / "tasks" / name)
        own = of_its_own(folder / "home") | {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(ha / "haproxy.cfg"),
            "RAY_SERVE_HAPROXY_SOCKET_PATH": f"{self.socket}/admin.sock",
            "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(ha),
            "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(ha / "server-state"),
        }
        (folder / "home").mkdir()
        self.environment, self.address = environment(**own), f"127.0.0.1:{free_port()}"
        of_serve = dict(word.split("=") for word in page("serve run").split() if "=" in word)
        line = page("ray start").strip().replace("6379", self.address.partition(":")[2])
        line += " --block --num-cpus=4 --include-dashboard=false --object-store-memory=100000000 "
        line += " ".join(agents())
        self.process = self.begin(line, "head", **of_serve)
        self.until(lambda: "runtime started" in self.log("head"), self.process, "head")
        self.environment["RAY_ADDRESS"] = self.address

    def begin(self, line: str, name: str, **more: str) -> subprocess.Popen:
        line = line.replace("8000", str(self.port)).replace("127.0.0.1:6379", self.address)
        with (self.folder / f"{name}.log").open("w") as log:
            where = dict(cwd=self.folder, env=self.environment | more, stdout=log, stderr=log)
            return subprocess.Popen(["bash", "-c", f"exec env {line}"], start_new_session=True, **where)

    def run(self, text: str) -> str:
        where = dict(cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=120)
        done = subprocess.run(["bash", "-c", text.replace("8000", str(self.port))], **where)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text("utf-8", "replace")

    def until(self, what, process: subprocess.Popen, name: str, seconds: float = START) -> None:
        until = time.monotonic() + seconds
        while not what():
            assert process.poll() is None and time.monotonic() < until, self.log(name)[-6000:]
            time.sleep(0.3)

    def replicas(self) -> set[int]:
        found = processes(self.environment["HOME"])
        return {number for number, words in found.items() if words.startswith("ray::ServeReplica:chat:LLMServer")}


def answered(server: Server, models) -> None:
    """Everybody's answers, asked for at once, are the single-task models'."""
    asked = [(name, prompt) for prompt in PROMPTS for name in TASKS] * 2
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda one: server.complete(*one), asked))
    assert all(status == 200 for status, _ in answers), answers
    for (name, prompt), (_, answer) in zip(asked, answers):
        models.equal(as_found(answer), TASKS[name], prompt, WITHIN)


def tried(server: Server, name: str) -> tuple[int, dict | str]:
    """(0, why) of a connection that was broken off, or of an answer that was."""
    try:
        return server.complete(name, PROMPTS[0])
    except (OSError, HTTPException) as error:
        return 0, str(error)


@pytest.fixture(scope="module")
def ray(models, tmp_path_factory):
    pytest.importorskip("ray")
    made = Ray(tmp_path_factory.mktemp("ray"), models)
    yield made
    made.process.send_signal(signal.SIGTERM)  # it ends what it started
    made.process.wait(60)
    for number in processes(made.environment["HOME"]):
        os.kill(number, signal.SIGKILL)
    shutil.rmtree(made.socket)


@pytest.fixture
def server(ray):
    """Asked as a server of vLLM's own, at a port of its own: a proxy of Ray outlives what it served."""
    found = Server.__new__(Server)
    found.port = ray.port = free_port()
    return found


def test_replicas_of_ray_serve_llm(ray, server, models):
    """Names reach the resolver through Ray; a replica that is killed takes no more than its own requests with it."""
    ray.run(page("chat.yaml <<"))
    config = yaml.safe_load((ray.folder / "chat.yaml").read_text())
    (one,) = config["applications"][0]["args"]["llm_configs"]
    one["engine_kwargs"] |= SMALL
    (ray.folder / "chat.yaml").write_text(yaml.safe_dump(config))
    process = ray.begin(page("serve run"), "serve")
    try:
        ray.until(lambda: server.healthy() and len(ray.replicas()) == 2, process, "serve")
        assert json.loads(ray.run(page('"rhyme"')))["model"] == "rhyme"
        answered(server, models)
        status, words = server.complete("nobody", PROMPTS[0])
        assert status == 404 and "does not exist" in str(words)
        killed, names = min(ray.replicas()), list(TASKS) * 8
        with ThreadPoolExecutor(8) as pool:
            asked = [pool.submit(tried, server, name) for name in names]
            os.kill(killed, signal.SIGKILL)
            found = [one.result() for one in asked]
        assert 0 < sum(status == 200 for status, _ in found)
        for name, (status, answer) in zip(names, found):
            assert status in (0, 200) or status >= 500, answer
            if status == 200:
                models.equal(as_found(answer), TASKS[name], PROMPTS[0], WITHIN)
        ray.until(lambda: len(ray.replicas() - {killed}) == 2, process, "serve")
    finally:
        end(process)
        ray.run("serve shutdown -y")


def test_ray_workers_with_tensor_parallel(ray, server, models):
    """vLLM's Ray executor on CPUs, whose two workers share a model."""
    small = " ".join(f"--{key.replace('_', '-')} {value}" for key, value in SMALL.items())
    process = ray.begin(f"{page('api_server').strip()} {small}", "server")
    try:
        ray.until(server.healthy, process, "server")
        workers = [words for words in processes(ray.environment["HOME"]).values() if "RayWorkerProc" in words]
        assert len(workers) == 2, processes(ray.environment["HOME"])
        assert json.loads(ray.run(page('"prose"')))["model"] == "prose"
        answered(server, models)
    finally:
        end(process)


def test_vllms_own_platform_stays_where_the_other_is_not_for(monkeypatch):
    import vllm

    from dts.vllm import ray_cpus

    said = []
    monkeypatch.setattr(ray_cpus.log, "warning", lambda text, *values: said.append(text % values))
    for value in ("", "0"):
        monkeypatch.setenv("DTS_VLLM_RAY_CPUS", value)
        assert ray_cpus.register() is None and not said
    monkeypatch.setenv("DTS_VLLM_RAY_CPUS", "1")
    assert ray_cpus.register() == "dts.vllm.ray_platform.RayCpus" and not said
    monkeypatch.setattr(ray_cpus.platforms, "cpu_platform_plugin", lambda: None)
    assert ray_cpus.register() is None and "is for vLLM on CPUs" in said.pop()
    monkeypatch.setattr(vllm, "__version__", "0.99.0+cpu")
    assert ray_cpus.register() is None and "made for vLLM 0.32.0, and this is 0.99.0+cpu" in said.pop()
