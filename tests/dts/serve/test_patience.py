"""Connections that say nothing, or half of a header, over real sockets: they end, and harm nobody."""

import asyncio
import contextlib
import importlib
import math
import signal
import socket
import threading
import time
from collections import Counter

import pytest

pytest.importorskip("fastapi", reason="needs fastapi (pip install 'dts-merge[serve]')")
uvicorn = pytest.importorskip("uvicorn", reason="needs uvicorn (pip install 'dts-merge[serve]')")

from dts.serve.http import open_files, patience, run  # noqa: E402
from dts.serve.http.open_files import Room  # noqa: E402
from dts.serve.http.patience import patient  # noqa: E402
from dts.serve.http.run import Server  # noqa: E402

SECONDS = 0.4
HEAD = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n"


async def echo(scope, receive, send):
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message.get("body", b""), message.get("more_body", False)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"4")]})
    await send({"type": "http.response.body", "body": body})


@contextlib.contextmanager
def running(app, drain=30.0, too_late=lambda: 0, refused=lambda status: None, most=math.inf):
    """(port, server) of a server in a thread."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    http = patient(SECONDS, refused, most)
    server = Server(uvicorn.Config(app, "127.0.0.1", port, http=http, ws="none", lifespan="off", log_level="error"))
    server.drain, server.too_late = drain, too_late
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield port, server
    finally:  # where a test fails its thread would keep all of them from ending
        server.should_exit = True
        thread.join(20)
    assert not thread.is_alive()


@pytest.fixture(scope="module")
def served():
    """(port, statuses that were refused)"""
    refused = Counter()
    with running(echo, refused=lambda status: refused.update([status])) as (port, _):
        yield port, refused


def connected(port):
    return socket.create_connection(("127.0.0.1", port), timeout=30)


def rest(client):
    """All that comes until the server closes."""
    found = b""
    while part := client.recv(4096):
        found += part
    return found


def test_half_a_header_is_told_408_and_its_connection_closed(served):
    port, refused = served
    before = refused[408]
    with connected(port) as client:
        client.sendall(HEAD)
        answer = rest(client)
    assert answer.startswith(b"HTTP/1.1 408 ") and b'"code":"request_timeout"' in answer
    assert refused[408] == before + 1


@pytest.fixture(params=["h11", "httptools"])
def parser(request, monkeypatch):
    """(port, statuses) of a server by each of uvicorn's two parsers."""
    pytest.importorskip(request.param)
    name = {"h11": "H11Protocol", "httptools": "HttpToolsProtocol"}[request.param]
    module = importlib.import_module(f"uvicorn.protocols.http.{request.param}_impl")
    monkeypatch.setattr(patience, "AutoHTTPProtocol", getattr(module, name))
    refused = Counter()
    with running(echo, refused=lambda status: refused.update([status])) as (port, _):
        yield port, refused


@pytest.mark.parametrize("endless", [b"y", b"a: b\r\n"])
def test_a_header_without_an_end_is_not_kept(parser, endless):
    port, refused = parser
    with connected(port) as client:
        with contextlib.suppress(OSError):  # it is closed meanwhile
            client.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nX: " + endless * (4_000_000 // len(endless)))
            assert client.recv(4096)[9:12] in (b"400", b"431")
    assert refused[400] + refused[431] == 1
    with connected(port) as client:  # who has much to say where much may be said is heard
        client.sendall(HEAD[:-3] + b"%d\r\n\r\n" % 200_000 + b"y" * 200_000)
        assert client.recv(4096).startswith(b"HTTP/1.1 200 ")


def test_what_is_no_http_is_told_so_in_the_shape_of_other_errors(parser):
    port, refused = parser
    with connected(port) as client:
        client.sendall(b"\x16\x03\x01 hello\r\n\r\n")
        answer = rest(client)
    assert answer.startswith(b"HTTP/1.1 400 ") and b'"code":"invalid_http"' in answer
    assert refused[400] == 1


def test_who_says_nothing_is_told_nothing(served):
    with connected(served[0]) as client:
        assert rest(client) == b""


def test_a_byte_now_and_then_is_not_more_time(served):
    with connected(served[0]) as client, pytest.raises(OSError):  # the server is gone
        for letter in HEAD + b"x" * 1000:
            client.sendall(bytes([letter]))
            time.sleep(SECONDS / 10)


def echoed(client, body):
    """Whether the answer to a request is this."""
    found = b""
    while not found.endswith(body) and (part := client.recv(4096)):
        found += part
    return found.startswith(b"HTTP/1.1 200 OK") and found.endswith(body)


def test_a_body_and_a_pause_between_requests_have_times_of_their_own(served):
    with connected(served[0]) as client:
        client.sendall(HEAD + b"\r\n")
        time.sleep(2 * SECONDS)
        client.sendall(b"body")
        assert echoed(client, b"body")
        time.sleep(2 * SECONDS)
        client.sendall(HEAD + b"\r\nmore")
        assert echoed(client, b"more")
        client.sendall(HEAD)  # the next one's
        assert rest(client).startswith(b"HTTP/1.1 408 ")


def test_two_hundred_of_them_stop_no_other_request(served):
    with contextlib.ExitStack() as stack:
        slow = [stack.enter_context(connected(served[0])) for _ in range(200)]
        for client in slow:
            client.sendall(HEAD)
        with connected(served[0]) as other:
            other.sendall(HEAD + b"\r\nsaid")
            assert echoed(other, b"said")
        assert all(rest(client).startswith(b"HTTP/1.1 408 ") for client in slow)


def test_connections_for_which_there_is_no_room_are_told_so():
    """Where all files are open no more connections are taken in, each with a traceback, and no adapter can be read."""
    refused = Counter()
    with running(echo, refused=lambda status: refused.update([status]), most=2) as (port, _):
        with contextlib.ExitStack() as stack:
            one, two = (stack.enter_context(connected(port)) for _ in range(2))
            for client in (one, two):
                client.sendall(HEAD + b"\r\nsaid")
                assert echoed(client, b"said")
            told = rest(stack.enter_context(connected(port)))
            assert told.startswith(b"HTTP/1.1 503 ") and b"retry-after: 1" in told.lower()
            assert b"2 connections are open" in told and b"too_many_connections" in told and refused[503] == 1
        with connected(port) as client:  # there is room again
            client.sendall(HEAD + b"\r\nmore")
            assert echoed(client, b"more")


@pytest.mark.skipif(open_files.resource is None, reason="sockets are no files here")
@pytest.mark.parametrize(
    "soft, hard, may, files",
    [(1024, 4096, True, 4096), (1024, 4096, False, 1024), (1024, -1, True, 65536), (1 << 20, 1 << 20, True, 65536)],
)
def test_as_many_files_as_there_may_be_are_asked_for(monkeypatch, soft, hard, may, files):
    class System:
        RLIMIT_NOFILE, RLIM_INFINITY, limits = 7, -1, (soft, hard)

        def getrlimit(self, which):
            return self.limits

        def setrlimit(self, which, limits):
            if not may:
                raise ValueError("not allowed to raise maximum limit")
            self.limits = limits

    system = System()
    monkeypatch.setattr(open_files, "resource", system)
    assert open_files.room() == Room.of(files) and system.limits[1] == hard
    found = Room.of(files)
    assert found.connections + found.backlog < files


def test_an_answer_that_nobody_reads_is_not_kept_for_ever():
    size, parts = 1 << 16, 400  # more than what lies between the two takes
    gone = threading.Event()

    async def much(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(parts):
            await send({"type": "http.response.body", "body": b"x" * size, "more_body": True})
        await send({"type": "http.response.body"})
        gone.set()

    with running(much) as (port, server):
        with connected(port) as client:
            client.sendall(HEAD + b"\r\nbody")
            assert gone.wait(20) and not server.server_state.connections
            with contextlib.suppress(ConnectionResetError):
                assert sum(map(len, iter(lambda: client.recv(size), b""))) < size * parts
        with connected(port) as client:  # who reads in time gets everything
            client.sendall(HEAD.replace(b"1.1", b"1.0") + b"\r\nbody")
            assert sum(map(len, iter(lambda: client.recv(size), b""))) > size * parts


def test_a_port_that_was_taken_while_the_model_was_loaded_is_an_error_in_words():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        server = Server(uvicorn.Config(echo, "127.0.0.1", port, lifespan="off", log_level="error"))
        with pytest.raises(ValueError, match=f"the server cannot start: 127.0.0.1 port {port} was taken"):
            server.run()


class Slow:
    """An application whose one answer takes until it is told that it is too late."""

    def __init__(self):
        self.asked, self.over = threading.Event(), threading.Event()

    async def __call__(self, scope, receive, send):
        self.asked.set()
        while not self.over.is_set():
            await asyncio.sleep(0.01)
        await send({"type": "http.response.start", "status": 503, "headers": []})
        await send({"type": "http.response.body"})

    def too_late(self):
        self.over.set()
        return 1


def test_what_is_not_answered_in_the_time_that_a_stop_has_is_told_so():
    slow = Slow()
    with running(slow, drain=0.3, too_late=slow.too_late) as (port, server), connected(port) as client:
        client.sendall(HEAD + b"\r\nbody")
        assert slow.asked.wait(30)
        server.handle_exit(signal.SIGTERM, None)
        assert rest(client).startswith(b"HTTP/1.1 503 ")
    assert server.broken == 1


def test_a_second_signal_leaves_time_for_last_words_and_no_more(monkeypatch):
    monkeypatch.setattr(run, "GRACE", 0.3)
    slow, deaf = Slow(), Slow()
    for app, told in ((slow, b"HTTP/1.1 503 "), (deaf, b"")):
        with running(app, too_late=slow.too_late) as (port, server), connected(port) as client:
            client.sendall(HEAD + b"\r\nbody")
            assert app.asked.wait(30)
            server.handle_exit(signal.SIGTERM, None)
            server.handle_exit(signal.SIGTERM, None)
            with contextlib.suppress(ConnectionResetError):
                assert rest(client)[:13] == told
        assert server.broken == 1 + (app is deaf)


def test_a_thousand_connections_at_once_while_the_clock_jumps(monkeypatch):
    """Nobody is told to wait, and no deadline is of a clock that somebody sets."""
    many, clock = min(1000, open_files.room().connections // 2), time.time
    monkeypatch.setitem(globals(), "SECONDS", 60)
    with running(echo) as (port, server), contextlib.ExitStack() as open_:
        clients = []
        for i in range(many):
            clients.append(open_.enter_context(socket.create_connection(("127.0.0.1", port), 60)))
            if i == many // 2:
                monkeypatch.setattr(time, "time", lambda: clock() + 5 * 3600)
        for client in clients:
            client.sendall(HEAD + b"\r\n")
        while len(server.server_state.connections) < many:
            time.sleep(0.01)
        monkeypatch.setattr(time, "time", lambda: clock() - 7 * 3600)
        for client in clients:
            client.sendall(b"body")
        for client in clients:
            told = b""
            while not told.endswith(b"\r\n\r\nbody"):
                piece = client.recv(1024)
                assert piece, told
                told += piece
            assert told.startswith(b"HTTP/1.1 200")
