"""A real server process, real clients (the openai package, curl where it is there), signals, mistakes at the start."""

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from contextlib import ExitStack
from itertools import takewhile
from pathlib import Path

import pytest
from typer.testing import CliRunner

pytest.importorskip("fastapi", reason="needs fastapi (pip install 'dts-merge[serve]')")
pytest.importorskip("uvicorn", reason="needs uvicorn (pip install 'dts-merge[serve]')")
pytest.importorskip("prometheus_client", reason="needs prometheus-client (pip install 'dts-merge[serve]')")
openai = pytest.importorskip("openai", reason="needs the openai package, a client that is not ours")

from dts.cli.app import app  # noqa: E402
from dts.serve.choice import choice_of  # noqa: E402
from tests.docs.pages import blocks  # noqa: E402
from tests.dts.serve.asking import whole  # noqa: E402

ROOT = Path(__file__).resolve().parents[3]
KEY, ADMIN = "a key of callers 123", "a key of admins 4567"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Process:
    """`dts serve` on a loopback port."""

    def __init__(self, place, folder, *options):
        self.port, self.log = free_port(), folder / "log"
        (folder / "api").write_text(f"# who calls\n{KEY}\n")
        (folder / "admin").write_text(ADMIN)
        keys = ["--api-keys", str(folder / "api"), "--admin-keys", str(folder / "admin")]
        words = [
            "serve",
            str(place.base),
            "--adapters",
            str(place.adapters),
            "--port",
            str(self.port),
            "--device",
            "cpu",
            *keys,
            *options,
        ]
        with self.log.open("w") as log:
            self.process = subprocess.Popen([sys.executable, "-m", "dts", *words], cwd=ROOT, stderr=log, stdout=log)
        end = time.monotonic() + 180
        while not self.get("/ready"):
            assert self.process.poll() is None and time.monotonic() < end, self.log.read_text()
            time.sleep(0.1)

    def get(self, path, key=""):
        headers = {"Authorization": f"Bearer {key}"}
        asked = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", headers=headers)
        try:
            return urllib.request.urlopen(asked, timeout=10).read()
        except OSError:
            return b""

    def state(self):
        return json.loads(self.get("/admin/state", ADMIN))

    def client(self, key=KEY):
        return openai.OpenAI(base_url=f"http://127.0.0.1:{self.port}/v1", api_key=key, max_retries=0, timeout=120)

    def end(self):
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(120)


@pytest.fixture(scope="module")
def server(decoder, tmp_path_factory):
    made = Process(decoder, tmp_path_factory.mktemp("server"))
    yield made
    if made.process.poll() is None:
        made.end()


def greedy(place, model, ids, tokens):
    """What transformers makes of ids with the dense model of a task or a mixture."""
    from transformers import AutoTokenizer

    said = whole(place.single(*choice_of(model, "base").weights), ids, tokens)
    return AutoTokenizer.from_pretrained(place.base).decode(said, skip_special_tokens=True)


def test_openais_client_gets_what_the_single_task_models_say(decoder, server):
    client = server.client()
    assert [one.id for one in client.models.list()] == ["base", "a", "b", "c"]
    prompts = {name: [10 + i, 20, 30] for i, name in enumerate(["a", "b", "c", "base"])}
    found = {}

    def ask(name):
        answer = client.completions.create(model=name, prompt=prompts[name], max_tokens=10, temperature=0)
        found[name] = answer.choices[0].text

    threads = [threading.Thread(target=ask, args=(name,)) for name in prompts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {name: greedy(decoder, name, ids, 10) for name, ids in prompts.items()}
    messages = [{"role": "user", "content": "hello"}]
    how = dict(model="a", messages=messages, max_tokens=10, temperature=0)
    whole = client.chat.completions.create(**how)
    stream = client.chat.completions.create(**how, stream=True, stream_options={"include_usage": True})
    chunks = list(stream)
    said = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert said == whole.choices[0].message.content and chunks[-1].usage == whole.usage
    assert len(client.embeddings.create(model="a", input="hello").data[0].embedding) == 32


def test_openais_client_understands_the_errors(server):
    with pytest.raises(openai.NotFoundError, match="does not exist; there are a, b, base, c"):
        server.client().completions.create(model="nobody", prompt="x")
    with pytest.raises(openai.AuthenticationError):
        server.client("wrong").models.list()
    with pytest.raises(openai.BadRequestError, match="temperature"):
        server.client().completions.create(model="a", prompt="x", temperature=-1)
    with pytest.raises(openai.PermissionDeniedError):
        server.client().post("/load_lora_adapter", body={"lora_name": "x", "lora_path": "a"}, cast_to=str)


def aborted(server):
    found = re.search(
        rb'request_success_total{finished_reason="abort",model_name="c"} (\S+)', server.get("/metrics", ADMIN)
    )
    return float(found[1]) if found else 0


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_ends_its_request(server, stream):
    before = aborted(server)
    body = json.dumps({"model": "c", "prompt": "x", "max_tokens": 120, "temperature": 0, "stream": stream, "n": 16})
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\nContent-Length: {len(body)}\r\n"
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        client.sendall(f"{head}Content-Type: application/json\r\n\r\n{body}".encode())
        while not server.state()["running"]:
            time.sleep(0.01)
        if stream:
            assert client.recv(15) == b"HTTP/1.1 200 OK"
            told = b""
            while b"data: " not in told:  # else it may be gone before the first token, and there is nothing to count
                told += (more := client.recv(4096))
                assert more
    end = time.monotonic() + 60
    while server.state()["running"] or aborted(server) == before:
        assert time.monotonic() < end
        time.sleep(0.05)
    generated = re.findall(rb'generation_tokens_total{model_name="c"} (\S+)', server.get("/metrics", ADMIN))
    assert float(generated[0]) < 16 * 120 * (1 + (not stream))


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_curl(server):
    address = f"http://127.0.0.1:{server.port}/v1/completions"
    body = json.dumps({"model": "b", "prompt": "x", "max_tokens": 3, "temperature": 0})
    words = ["curl", "-s", address, "-H", f"Authorization: Bearer {KEY}", "-H", "Content-Type: application/json"]
    done = subprocess.run([*words, "-d", body], capture_output=True, text=True, timeout=60)
    assert json.loads(done.stdout)["usage"]["completion_tokens"] == 3
    done = subprocess.run([*words, "-d", "{"], capture_output=True, text=True, timeout=60)
    assert json.loads(done.stdout)["error"]["code"] == "invalid_json"


def test_sigterm_under_load_loses_nothing_that_was_taken_in(decoder, tmp_path):
    server = Process(decoder, tmp_path, "--batch", "2")
    client, answers, errors = server.client(), [], []

    def ask(index):
        try:
            answers.append(
                client.completions.create(model="abc"[index % 3], prompt="load", max_tokens=60, temperature=0).choices
            )
        except openai.APIStatusError as error:
            errors.append(error)

    threads = [threading.Thread(target=ask, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    while (state := server.state())["running"] + state["waiting"] + len(answers) < 8:
        time.sleep(0.01)
    with ExitStack() as stack:
        connect = lambda: stack.enter_context(socket.create_connection(("127.0.0.1", server.port)))  # noqa: E731
        half = connect()  # nothing that was taken in: it never ends
        head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\nContent-Length: 99\r\n"
        half.sendall(f'{head}Content-Type: application/json\r\n\r\n{{"model":'.encode())
        for _ in range(200):
            connect().sendall(head.encode())  # a header that never ends
        assert server.get("/health") and server.get("/ready")
        time.sleep(0.1)
        assert server.end() == 0, server.log.read_text()
        assert b" 503 " in half.recv(64)
    for thread in threads:
        thread.join(60)
    assert len(answers) == 8 and errors == []
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", server.port), timeout=5)


def test_everything_that_is_wrong_at_the_start_is_said_at_once(decoder, tmp_path):
    (tmp_path / "short").write_text("1234")
    (tmp_path / "empty").write_text("# none\n")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        words = ["serve", str(tmp_path / "nothing"), "-a", str(decoder.adapters), "--pin", "nobody", "--name", "a"]
        words += ["--api-keys", str(tmp_path / "short"), "--admin-keys", str(tmp_path / "empty"), "--queue", "1"]
        done = CliRunner().invoke(
            app, [*words, "--port", str(taken.getsockname()[1]), "--max-tokens", "0", "--device", "nope"]
        )
    assert done.exit_code == 2
    text = " ".join(done.output.replace("│", " ").split())
    for words in ("the model:", "no adapter 'nobody'", "'a' is the base's name", "fewer than 16", "has no key"):
        assert words in text
    for words in ("--queue is 1, and at least 64", "--max-tokens is 0", "in use", "device 'nope': there is none"):
        assert words in text


def test_nothing_is_called_what_asks_for_a_choice(decoder, tmp_path):
    """`auto` as a task or as the base could not be asked for: it chooses a task."""
    import shutil

    from dts.serve.catalogue import Catalogue
    from dts.serve.options import Options, problems
    from dts.serve.refused import Refused

    shutil.copytree(decoder.adapters / "a", tmp_path / "auto")
    assert any("rename the folder" in line for line in problems(Options(str(decoder.base), tmp_path), False))
    assert any("not 'auto'" in line for line in problems(Options(str(decoder.base), tmp_path, name="auto"), False))
    catalogue = Catalogue(tmp_path, "base", None)
    assert catalogue.names() == []
    with pytest.raises(Refused, match="'auto' cannot be a task's name"):
        catalogue.give("auto", "auto")
    catalogue.give("automatic", "auto")
    assert catalogue.names() == ["automatic"]


@pytest.mark.parametrize("words", [["--memory", "5%"], ["--adapters", "/nowhere"], ["--port", "0"]])
def test_what_cannot_be_is_refused(decoder, words):
    done = CliRunner().invoke(app, ["serve", str(decoder.base), "--adapters", str(decoder.adapters), *words])
    assert done.exit_code == 2 and "Traceback" not in done.output


def test_it_says_how_many_were_broken_off(decoder, monkeypatch):
    from dts.serve.http import run

    for broken, code, words in ((0, 0, ""), (1, 1, "1 request was broken off"), (3, 1, "3 requests were broken off")):
        monkeypatch.setattr(run, "run", lambda options, ready, broken=broken: broken)
        done = CliRunner().invoke(app, ["serve", str(decoder.base), "--adapters", str(decoder.adapters)])
        assert done.exit_code == code and words in " ".join(done.output.split())


@pytest.mark.parametrize("host, address", [("::1", "http://[::1]:8000"), ("localhost", "http://localhost:8000")])
def test_the_address_that_it_tells_is_one(decoder, monkeypatch, host, address):
    from dts.serve.http import run

    monkeypatch.setattr(run, "run", lambda options, ready: ready([], None))
    done = CliRunner().invoke(
        app, ["serve", str(decoder.base), "--adapters", str(decoder.adapters), "--host", host, "--json"]
    )
    assert json.loads(done.stdout)["address"] == address


def test_a_folder_without_adapters_is_said_to_be_one(decoder, monkeypatch, tmp_path):
    from dts.serve.http import run

    monkeypatch.setattr(run, "run", lambda options, ready: ready([], None))
    done = CliRunner().invoke(app, ["serve", str(decoder.base), "--adapters", str(tmp_path)])
    assert "base and no adapters yet in" in " ".join(done.stdout.split())


def test_help_says_the_limits():
    done = CliRunner().invoke(app, ["serve", "--help"], env={"COLUMNS": "200"})
    for option in ("--memory", "--queue", "--max-body", "--max-prompt", "--max-tokens", "--max-rows", "--timeout"):
        assert option in done.output
    assert os.environ.get("HOME", "/root") not in done.output


@pytest.mark.slow
def test_the_page_does_what_it_says(tmp_path, monkeypatch):
    """The commands of docs/deploy.md, in an empty folder but for the examples."""
    if shutil.which("curl") is None:
        pytest.skip("needs curl")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    page = takewhile(
        lambda block: "VLLM" not in block.text, blocks(ROOT / "docs" / "deploy.md")
    )  # tests/vllm runs the rest
    lines = [line for block in page for line in ([block.text] if block.run else block.text.splitlines())]
    run = lambda words: subprocess.run(words, capture_output=True, text=True, timeout=120, env=environment)  # noqa: E731
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    port, server, answers, ran = free_port(), None, [], []
    try:
        for line in lines:
            line = line.replace("8000", str(port))
            words = shlex.split(line) if "\n" not in line else [line]
            if words[:2] == ["dts", "serve"]:
                stopped(server)
                words = [sys.executable, "-m", "dts", *words[1:]]
                server = subprocess.Popen(words, env=environment, stderr=subprocess.DEVNULL)
                while run(["curl", "-sf", f"http://127.0.0.1:{port}/ready"]).returncode:
                    assert server.poll() is None
                    time.sleep(0.2)
            elif "import OpenAI" in words[0]:
                done = run([sys.executable, "-c", line])
                assert done.returncode == 0 and done.stdout == " there w", done
                ran.append("OpenAI")
            elif words[0] in ("python", "echo"):
                done = run([sys.executable, *words[1:]] if words[0] == "python" else ["bash", "-c", line])
                assert done.returncode == 0, done.stderr
            elif words[0] == "dts":
                done = CliRunner().invoke(app, words[1:], prog_name="dts")
                assert done.exit_code == 0, done.output
            elif words[0] == "curl":
                answers.append(run(words).stdout)
        assert len(answers) == 7 and ran == ["OpenAI"] and not any('"error"' in one for one in answers), answers
        found = [json.loads(answer) for answer in (*answers[:4], answers[6])]
        streamed = [json.loads(one) for one in re.findall(r"data: (\{.*)", answers[5])]
        assert "".join(one["choices"][0]["text"] for one in streamed) == " a mouse"
        assert [one["id"] for one in found[0]["data"]] == ["base", "mood", "topic"]
        assert found[1]["data"][0]["label"] == "sad" and found[2]["data"][0]["label"] == "science"
        assert found[4]["pinned"] == ["mood"] and "dts:num_requests_running" in answers[4]
    finally:
        stopped(server)


def stopped(server: subprocess.Popen | None) -> None:
    if server is not None:
        server.send_signal(signal.SIGTERM)
        assert server.wait(60) == 0
