"""What the load test says of answers that are wrong, refused or lost, and of a server that is not ours."""

import asyncio
import json
import sys
import threading
from types import SimpleNamespace

import pytest
import torch

import dts
from benchmarks.serving.client import Load, run
from benchmarks.serving.load import wrongs
from benchmarks.serving.made import SIZES, Question, lengths, reordered
from benchmarks.serving.server import Process
from benchmarks.serving.stages import Report, beside_vllm, cycle, many, take_turns


@pytest.fixture
def server():
    """Answers by the first token of the prompt: 1 right, 2 wrong, 3 with 429, 4 by hanging up."""

    async def answer(reader, writer):
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        length = int(head.lower().partition("content-length: ")[2].partition("\r\n")[0])
        asked = json.loads(await reader.readexactly(length))
        kind = asked["prompt"][0]
        if kind != 4:
            content = {"usage": {"completion_tokens": 5}, "choices": [{"text": "right" if kind == 1 else "no"}]}
            status = "429 Too Many Requests" if kind == 3 else "200 OK"
            writer.write(f"HTTP/1.1 {status}\r\nConnection: close\r\n\r\n{json.dumps(content)}".encode())
            await writer.drain()
        writer.close()

    ready, stop = threading.Event(), []

    async def serve():
        made = await asyncio.start_server(answer, "127.0.0.1", 0)
        end = asyncio.Event()
        stop[:] = [made.sockets[0].getsockname()[1], asyncio.get_running_loop(), end]
        ready.set()
        await end.wait()
        made.close()

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    assert ready.wait(10)
    yield stop[0]
    stop[1].call_soon_threadsafe(stop[2].set)
    thread.join(10)


def question(kind):
    return Question("t0", (kind, 9), "right")


def test_each_request_is_counted_once_as_what_became_of_it(server):
    load = run(server, [question(kind) for kind in (1, 1, 1, 2, 3, 3, 4)], 3)
    assert load.statuses == {200: 4, 429: 2, 0: 1} and load.wrong == 1
    assert len(load.seconds) == 4 and load.tokens == 20 and load.row()["requests"] == 7
    assert load.quantile(0.99) == max(load.seconds)


def test_what_is_wrong_or_lost_is_an_error():
    report = Report(0)
    report.add("mixed", wrong=0, lost=0, code=0, healthy=True)
    assert wrongs(report) == [] and report.late
    for bad in ({"wrong": 1}, {"lost": 2}, {"code": 1}, {"healthy": False}):
        report.add("mixed", **bad)
    assert len(wrongs(report)) == 4


def test_questions_come_again_in_turns():
    assert [one.prompt[0] for one in cycle([question(1), question(2)], 5)] == [1, 2, 1, 2, 1]


def test_questions_go_to_their_tasks_own_server_where_each_has_one(server):
    load = run({"t0": server}, [question(1)] * 3, 2)
    assert load.statuses == {200: 3}


def test_turns_are_told_by_their_medians_and_what_was_wrong_in_any_of_them(monkeypatch):
    monkeypatch.setattr("benchmarks.serving.stages.TURNS", 3)
    report, numbers = Report(float("inf")), iter([3.0, 9.0, 4.0])
    wrong = Load(wrong=1, took=1.0)
    wrong.statuses.update({200: 2, 429: 1})
    loads = iter([wrong, Load(took=1.0), Load(took=1.0)])
    medians = take_turns("x", {"a": lambda: (next(numbers), next(loads)), "b": lambda: (2.0, None)}, report)
    assert medians == {"a": 4.0, "b": 2.0} and len(wrongs(report)) == 1
    assert report.rows[0] == {"what": "wrong", "of": "a", "wrong": 1, "lost": 1}
    assert [row["turns"] for row in report.rows[1:]] == [[3.0, 9.0, 4.0], [2.0] * 3]


def test_what_a_server_holds_is_told_after_so_many_requests_in_all(monkeypatch):
    asked = []

    def ran(port, questions, clients):
        asked.append(len(questions))
        load = Load(took=1.0)
        load.statuses.update({200: len(questions) - len(asked), 503: len(asked)})
        return load

    monkeypatch.setattr("benchmarks.serving.stages.run", ran)
    report = Report(float("inf"))
    many(SimpleNamespace(port=1, nbytes=7, files=9), [question(1)], report)
    assert asked == [1000, 2000, 2000] and len(wrongs(report)) == 3
    assert [(row["requests"], row["lost"]) for row in report.rows] == [(1000, 1), (3000, 2), (5000, 3)]
    assert all(row["server_bytes"] == 7 and row["files"] == 9 for row in report.rows)


def test_lengths_are_spread_evenly_by_their_logarithm():
    found = lengths(32, 6, 96)
    assert sorted(found)[0] == 6 and sorted(found)[-1] == 96 and found != sorted(found)
    assert sum(one < 24 for one in found) == 16 == sum(one >= 24 for one in found)


def test_tasks_in_another_order_are_other_tasks_of_the_same_size(adapters):
    reordered(adapters, "t1", 1)
    one, other = (dts.Adapter.load(adapters / name) for name in ("t0", "t1"))
    assert abs(one.nbytes - other.nbytes) < 100 and other.name == "t1"
    u, moved = (next(e for e in a.entries.values() if e.factorised).matrices[0].stored[0].u for a in (one, other))
    assert torch.equal(u.roll(1, 0), moved) and not torch.equal(u, moved)


@pytest.fixture
def adapters(tmp_path):
    torch.manual_seed(0)
    base = torch.nn.Linear(256, 192)
    tuned = torch.nn.Linear(256, 192)
    dts.compress(base, tuned, out=tmp_path / "t0", rank_fraction=0.5)
    return tmp_path


FAKE_VLLM = '''#!{python}
"""Stands for vLLM's server: says which options and variables it got, answers with tokens, and with text of its own."""
import json, os, sys
from http.server import BaseHTTPRequestHandler, HTTPServer
words = sys.argv[1:]
with open("{seen}", "a") as file:
    print(json.dumps([words, os.environ["DTS_VLLM_MODE"], os.environ["DTS_VLLM_ADAPTERS"]]), file=file)
right = os.environ["DTS_VLLM_MODE"] == "packed"
class Answers(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/health" else 404)
        self.end_headers()
    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert asked["return_token_ids"] is True and self.path == "/v1/completions"
        choice = {{"text": "half a letter, right", "token_ids": [7] if right else [8]}}
        body = json.dumps({{"usage": {{"completion_tokens": 5}}, "choices": [choice]}}).encode()
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_):
        pass
HTTPServer(("127.0.0.1", int(words[words.index("--port") + 1])), Answers).serve_forever()
'''


class Words:
    """Stands for the tokenizer."""

    @staticmethod
    def decode(tokens, skip_special_tokens):
        assert skip_special_tokens
        return {7: "right", 8: "another"}[tokens[0]]


class Called:
    """Stands for PEFT."""

    def run(self, asked, rows):
        return len(asked)


def test_vllm_runs_packed_and_as_loras_and_its_tokens_are_compared_where_nothing_was_left_out(
    server, tmp_path, monkeypatch
):
    python, seen = tmp_path / "python", tmp_path / "seen"
    python.write_text(FAKE_VLLM.format(python=sys.executable, seen=seen))
    python.chmod(0o700)
    monkeypatch.setattr("benchmarks.serving.stages.TURNS", 1)
    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", lambda folder: Words)
    report, ours = Report(float("inf")), SimpleNamespace(port=server)
    beside_vllm(ours, python, tmp_path, SIZES["small"], Called(), ["t0"], [question(1)], report)
    (packed, mode, adapters), (lora, other, _) = map(json.loads, seen.read_text().splitlines())
    assert (mode, other, adapters) == ("packed", "lora", str(tmp_path / "adapters"))
    assert "--enforce-eager" in packed and "--enforce-eager" not in lora  # packed tasks want it
    assert packed[packed.index("--max-lora-rank") + 1] == "16" and packed[packed.index("--max-loras") + 1] == "1"
    assert wrongs(report) == []  # the LoRAs' answers are others: their norms are the base's
    told = [(row["stage"], row["of"]) for row in report.rows if "of" in row]
    assert told == [
        (f"vllm {mode}", who) for mode in ("packed", "lora") for who in ("8 tasks", "vLLM, 8 tasks", "PEFT, 8 tasks")
    ]
    assert sum("ratio" in row for row in report.rows) == 4


def test_a_server_that_does_not_start_is_told_with_the_end_of_its_log(tmp_path):
    with pytest.raises(RuntimeError, match="did not start: why, at last"):
        Process([sys.executable, "-c", "import sys; sys.exit('why, at last')"], tmp_path / "log", "/")
