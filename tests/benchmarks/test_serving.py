"""What the load test says of answers that are wrong, refused or lost, and of a server that is not ours."""

import asyncio
import json
import threading

import pytest

from benchmarks.serving.client import run
from benchmarks.serving.load import Report, cycle, wrongs
from benchmarks.serving.made import Question


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
    load = run(server, [question(kind) for kind in (1, 1, 1, 2, 3, 3, 4)], 3, 5)
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
