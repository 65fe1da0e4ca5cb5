"""Parts of an application of replicas that need no Ray."""

import asyncio
import json

import pytest

pytest.importorskip("starlette")
pytest.importorskip("prometheus_client")

from dts.ray.asgi import messages, plain, whole  # noqa: E402
from dts.ray.asked import tasks_of  # noqa: E402
from dts.ray.figures import merged  # noqa: E402
from dts.ray.ledger import Answer, Ledger, Reply  # noqa: E402
from dts.ray.ranked import ranked  # noqa: E402
from dts.serve.choice import Choice  # noqa: E402
from dts.serve.metrics import Metrics  # noqa: E402
from dts.serve.refused import Refused  # noqa: E402


def test_tasks_of_a_request():
    assert tasks_of(b'{"model": "a"}', "base") == ("a",)
    assert tasks_of(b'{"model": "a:0.5,b:0.5"}', "base") == ("a", "b")
    deep = b"[" * 100_000
    for body in (b"", b"{", b"[]", b'{"model": "base"}', b'{"model": 3}', b'{"model": "a:x"}', b"\xff", deep, b"{}"):
        assert tasks_of(body, "base") == ()


def test_who_holds_a_task_gets_it_unless_it_is_much_busier():
    names = {1: "one", 2: "two", 3: "three"}
    idle = dict.fromkeys(names, 0)
    held = {1: ["a"], 2: ["a", "b"], 3: []}
    assert ranked(["b"], idle, held, names, 4)[0] == 2
    assert ranked(["a", "b"], idle, held, names, 4)[:2] == [2, 1]
    assert ranked(["b"], idle | {2: 4}, held, names, 4)[0] == 2
    assert ranked(["b"], idle | {2: 5}, held, names, 4)[-1] == 2
    assert ranked(["a"], idle | {1: 3}, held, names, 4)[0] == 2  # of two that hold it the less busy
    assert ranked([], {1: 2, 2: 1, 3: 3}, held, names, 4) == [2, 1, 3]  # the base: whoever is the least busy
    assert ranked(["a"], {}, {}, {}, 4) == []


def test_tasks_that_nobody_holds_are_spread_and_stay():
    names = {index: f"replica {index}" for index in range(4)}
    nobody = dict.fromkeys(names, ())
    tasks = [f"task {index}" for index in range(60)]
    first = {task: ranked([task], dict.fromkeys(names, 0), nobody, names, 8)[0] for task in tasks}
    assert set(first.values()) == set(names)
    busy = {index: index for index in names}  # within the slack
    assert first == {task: ranked([task], busy, nobody, names, 8)[0] for task in tasks}
    fewer = dict(list(names.items())[:3])  # one has gone: only its own tasks move
    moved = {task: ranked([task], dict.fromkeys(fewer, 0), nobody, fewer, 8)[0] for task in tasks}
    assert all(moved[task] == first[task] for task in tasks if first[task] != 3)


def test_figures_of_replicas_on_one_page():
    pages = []
    for name, loads in (("x", 1), ("y", 2)):
        metrics = Metrics()
        for _ in range(loads):
            metrics.loaded("a", 0.02)
        metrics.refused(404)
        pages.append((name, metrics.text()))
    from prometheus_client.parser import text_string_to_metric_families

    page = merged(pages).decode()
    found = {family.name: family for family in text_string_to_metric_families(page)}
    loads = {
        one.labels["replica"]: one.value for one in found["dts:adapter_loads"].samples if one.name.endswith("_total")
    }
    assert loads == {"x": 1, "y": 2} and page.count("# TYPE dts:adapter_loads_total counter") == 1
    buckets = [one for one in found["dts:adapter_load_seconds"].samples if one.labels.get("le") == "+Inf"]
    assert {one.labels["replica"]: one.value for one in buckets} == {"x": 1, "y": 2}
    assert Metrics().label(Choice("a")) == "a" and merged([]) == b""


# ---- calls of an application ---------------------------------------------------------------------------------------


async def echoes(scope, receive, send):
    body = (await receive())["body"]
    await send({"type": "http.response.start", "status": 201, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": body[:2], "more_body": True})
    await send({"type": "http.response.body", "body": body[2:]})


def test_an_application_is_asked_by_a_call():
    assert asyncio.run(whole(echoes, {"type": "http"}, b"hello")) == Answer(201, b"text/plain", b"hello")
    scope = {"type": "http", "path": "/x", "headers": [(b"x-request-id", b"old"), (b"a", b"b")], "app": object()}
    asked = plain(scope, "new")
    assert asked["headers"] == [(b"a", b"b"), (b"x-request-id", b"new")] and "app" not in asked


def test_what_it_raises_is_raised():
    async def fails(scope, receive, send):
        raise KeyError("x")

    with pytest.raises(KeyError):
        asyncio.run(whole(fails, {"type": "http"}, b""))


@pytest.mark.parametrize("listens", [True, False])
def test_who_stops_reading_has_gone(listens, monkeypatch):
    from dts.ray import asgi

    monkeypatch.setattr(asgi, "GRACE", 0.05)
    ended = []

    async def endless(scope, receive, send):
        await receive()
        try:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            if listens:
                assert (await receive())["type"] == "http.disconnect"
                ended.append("told")
            else:
                await asyncio.sleep(60)
        except asyncio.CancelledError:
            ended.append("cancelled")
            raise

    async def reads():
        answers = messages(endless, {"type": "http"}, b"")
        await anext(answers)
        await answers.aclose()

    asyncio.run(reads())
    assert ended == ["told" if listens else "cancelled"]


# ---- what administrators did ---------------------------------------------------------------------------------------


class Replica:
    """Answers commands as it is told to, and keeps what the ledger says."""

    def __init__(self, name, status=200, code=None, version=0, kind=b"application/json"):
        self.name, self.status, self.code, self.version, self.kind = name, status, code, version, kind
        self.state = {"given": {}, "pinned": []}

    def command(self, scope, body):
        before = self.state
        if self.status < 400 and scope["method"] != "GET":
            self.state = {"given": {json.loads(body)["name"]: "/place"}, "pinned": []}
        content = {"loaded": {}} if self.status < 400 else {"error": {"code": self.code}}
        answer = Answer(self.status, self.kind, json.dumps(content).encode())
        return Reply(self.name, answer, self.version, before, self.state)

    def agree(self, version, state):
        if version > self.version:
            self.version, self.state = version, state


def ledger_of(*replicas):
    made = Ledger(5)

    async def everywhere(method, *arguments):
        return [getattr(one, method)(*arguments) for one in replicas]

    made._all = everywhere
    return made


LOAD = {"method": "POST", "path": "/admin/load"}


def test_a_command_reaches_all_and_those_that_come_later():
    replicas = [Replica("x"), Replica("y", version=3)]
    ledger = ledger_of(*replicas)
    answer = asyncio.run(ledger.command(LOAD, b'{"name": "n"}'))
    assert json.loads(answer.body) == {"replicas": {"x": {"loaded": {}}, "y": {"loaded": {}}}}
    assert ledger.version == 4 and [one.version for one in replicas] == [4, 4]
    later = asyncio.run(ledger.sync(0, {}))
    assert later == (4, {"given": {"n": "/place"}, "pinned": []})
    lost = Ledger(5)  # it learns from any replica
    assert asyncio.run(lost.sync(*later)) == later
    asyncio.run(ledger.command({"method": "GET"}, b""))
    assert ledger.version == 4


def test_what_not_all_can_do_is_undone():
    replicas = [Replica("x"), Replica("y", 409, "damaged_adapter")]
    ledger = ledger_of(*replicas)
    answer = asyncio.run(ledger.command(LOAD, b'{"name": "n"}'))
    assert answer.status == 409 and all(one.state["given"] == {} for one in replicas)
    assert [one.version for one in replicas] == [1, 1]


@pytest.mark.parametrize(
    "body, statuses, code, found",
    [
        (b'{"name": "n"}', (200, 400), "already_loaded", 200),
        (b'{"name": "n", "path": "p"}', (200, 400), "already_loaded", 400),
        (b'{"name": "n"}', (400, 400), "already_loaded", 400),
        (b'{"name": "n"}', (404, 200), "not_loaded", 200),
        (b'{"name": "n"}', (404, 404), "not_loaded", 404),
    ],
)
def test_where_one_had_nothing_to_do(body, statuses, code, found):
    replicas = [Replica(str(index), status, code) for index, status in enumerate(statuses)]
    ledger = ledger_of(*replicas)
    assert asyncio.run(ledger.command(LOAD, body)).status == found
    assert bool(ledger.state.get("given")) == (found == 200)


def test_no_replica_is_an_answer_too():
    with pytest.raises(Refused, match="no replica is there yet") as error:
        asyncio.run(ledger_of().command(LOAD, b"{}"))
    assert error.value.status == 503
    text = Replica("x", kind=b"text/plain")
    assert asyncio.run(ledger_of(text, text).command(LOAD, b'{"name": "n"}')).kind == b"text/plain"
