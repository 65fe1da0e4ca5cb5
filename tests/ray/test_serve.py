"""`dts serve` in replicas of a real local Ray, asked by real clients.  Later tests kill what earlier ones need."""

import json
import os
import re
import shutil
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

openai = pytest.importorskip("openai")

from tests.dts.serve.conftest import decoder, encoder  # noqa: E402, F401
from tests.dts.serve.test_server import greedy  # noqa: E402
from tests.ray.serving import ADMIN, Serving, engines  # noqa: E402

pytestmark = pytest.mark.ray
MIXED = "a:0.7,b:0.3"


@pytest.fixture(scope="module")
def serving(joined, decoder, encoder, tmp_path_factory):  # noqa: F811
    folder = tmp_path_factory.mktemp("serving")
    shutil.copytree(decoder.adapters, folder / "adapters")
    made = Serving(folder, joined, decoder, encoder, folder / "adapters")
    yield made
    from ray import serve

    made.process.kill()
    made.process.wait(20)
    serve.shutdown()


def complete(serving, model, ids, tokens):
    how = {"model": model, "prompt": ids, "max_tokens": tokens, "temperature": 0}
    return serving.client().completions.create(**how).choices[0].text


def figure(serving, name):
    """{replica: sum} of a figure."""
    found = {}
    for replica, value in re.findall(
        rf'^{name}{{[^}}]*replica="(\w+)"[^}}]*}} (\S+)', serving.get("/metrics")[1], re.M
    ):
        found[replica] = found.get(replica, 0) + float(value)
    return found


def test_openais_client_gets_what_the_single_task_models_say(serving, decoder):  # noqa: F811
    """From both replicas, whose batches are of all tasks."""
    client = serving.client()
    assert [one.id for one in client.models.list()] == ["base", "a", "b", "c"]
    names = ["a", "b", "c", "base", MIXED] * 4
    prompts = [[10 + index, 20, 30] for index in range(len(names))]
    expected = [greedy(decoder, *one, 24) for one in zip(names, prompts)]
    with ThreadPoolExecutor(len(names)) as pool:
        for _ in range(5):  # where requests come slowly one replica may be drawn for all tasks, and take a round alone
            assert list(pool.map(lambda one: complete(serving, *one, 24), zip(names, prompts))) == expected
            tokens, steps = figure(serving, "dts:generation_tokens_total"), figure(serving, "dts:batches")
            if all(tokens.get(one) for one in steps):
                break
    assert len(steps) == 2 and sum(tokens.values()) >= 20 * 20 and all(tokens.get(one) for one in steps), tokens
    assert sum(steps.values()) < sum(tokens.values()) / 2  # a step for each task alone would be as many as tokens
    how = dict(model="a", messages=[{"role": "user", "content": "hello"}], max_tokens=10, temperature=0)
    whole = client.chat.completions.create(**how)
    chunks = list(client.chat.completions.create(**how, stream=True, stream_options={"include_usage": True}))
    said = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert said == whole.choices[0].message.content and chunks[-1].usage == whole.usage and len(chunks) > 3
    assert len(client.embeddings.create(model="a", input="hello").data[0].embedding) == 32


def test_errors_are_those_of_one_server(serving):
    with pytest.raises(openai.NotFoundError, match="does not exist; there are a, b, base, c"):
        serving.client().completions.create(model="nobody", prompt="x")
    for key in ("wrong", ""):
        assert serving.get("/v1/models", key)[0] == 401
    with pytest.raises(openai.BadRequestError, match="temperature"):
        serving.client().completions.create(model="a", prompt="x", temperature=-1)
    with pytest.raises(openai.PermissionDeniedError):
        serving.client().post("/load_lora_adapter", body={"lora_name": "x", "lora_path": "a"}, cast_to=str)
    assert serving.ask("/v1/completions", {"model": "a", "prompt": "x" * 1_100_000})[0] == 413
    status, error = serving.ask("/nowhere", {})
    assert status == 404 and "nowhere" in error["error"]["message"]
    answer = serving.client().completions.with_raw_response.create(
        model="a", prompt="x", max_tokens=1, extra_headers={"X-Request-Id": "my-own-id"}
    )
    assert answer.headers.get_list("x-request-id") == ["my-own-id"] or "my-own-id" in answer.headers["x-request-id"]


def test_below_a_prefix_it_is_the_same_and_an_administrators_routes_are_kept(serving):
    status, found = serving.ask("/two/classify", {"model": "topic", "input": "hello"}, "")
    assert status == 200 and found["data"][0]["label"] in ("sport", "news", "art")
    assert serving.get("/two/admin/state", "")[0] == 401  # and not everybody's, as the rest of it is
    assert serving.ask("/two/admin/load", {"name": "mood"}, "")[0] == 401
    assert serving.ask("/two/v1/unload_lora_adapter", {"lora_name": "topic"}, "")[0] == 401
    assert len(serving.get("/two/admin/state", ADMIN)[1]["replicas"]) == 1
    assert b"<html" in serving.get("/two")[1].encode() or serving.get("/two/")[0] == 200


def test_a_task_stays_where_it_is(serving):
    """Folders that are copied there while it runs: each is loaded by one replica."""
    names = [f"late{index}" for index in range(6)]
    for name in names:
        shutil.copytree(serving.adapters / "a", serving.adapters / name)
    for _ in range(3):
        for name in names:
            complete(serving, name, [5, 6], 2)
    holding = {name: [one for one, state in serving.state().items() if name in state["loaded"]] for name in names}
    assert all(len(replicas) == 1 for replicas in holding.values()), holding
    for name in names:
        shutil.rmtree(serving.adapters / name)
    assert serving.ask("/v1/completions", {"model": "late0", "prompt": "x"})[0] == 404


def test_administrators_reach_every_replica(serving, decoder):  # noqa: F811
    status, found = serving.admin("load", name="other", path="b", pin=True)
    assert status == 200 and len(found["replicas"]) == 2
    assert all("other" in state["loaded"] and state["pinned"] == ["other"] for state in found["replicas"].values())
    with ThreadPoolExecutor(8) as pool:
        said = set(pool.map(lambda _: complete(serving, "other", [9, 8, 7], 6), range(8)))
    assert said == {greedy(decoder, "b", [9, 8, 7], 6)}
    assert serving.admin("load", name="other", path="c")[0] == 400  # loaded already
    assert serving.admin("load", name="out", path="../../..")[0] == 400
    assert serving.admin("load", name="none", path="nowhere")[0] == 404
    assert serving.admin("unload", name="nobody")[0] == 404
    client = serving.client(ADMIN)
    lora = {"lora_name": "other", "lora_path": "c", "load_inplace": True}
    assert "Success" in client.post("/load_lora_adapter", body=lora, cast_to=str)
    assert complete(serving, "other", [9, 8, 7], 6) == greedy(decoder, "c", [9, 8, 7], 6)
    assert "Success" in client.post("/unload_lora_adapter", body={"lora_name": "other"}, cast_to=str)
    assert serving.ask("/v1/completions", {"model": "other", "prompt": "x"})[0] == 404
    assert not any("other" in state["loaded"] or state["pinned"] for state in serving.state().values())
    assert serving.admin("load", name="a", pin=True)[0] == 200  # where one has it already, and the other has not
    assert all("a" in state["loaded"] for state in serving.state().values())


def test_a_client_that_goes_away_ends_its_request(serving):
    body = json.dumps({"model": "c", "prompt": "x", "max_tokens": 120, "temperature": 0, "n": 16})
    head = (
        f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {ADMIN}\r\nContent-Length: {len(body)}\r\n"
    )
    with socket.create_connection(("127.0.0.1", serving.port)) as client:
        client.sendall(f"{head}Content-Type: application/json\r\n\r\n{body}".encode())
        serving.until(lambda: any(state["running"] for state in serving.state().values()))
    serving.until(lambda: not any(state["running"] for state in serving.state().values()))
    page = serving.get("/metrics")[1]
    assert re.search(r'request_success_total{[^}]*finished_reason="abort"[^}]*model_name="c"[^}]*} 1', page), page


def test_more_than_it_may_hold_is_told_429_and_nothing_waits_for_ever(serving):
    def ask(index):
        return serving.ask("/v1/completions", {"model": "abc"[index % 3], "prompt": "x", "max_tokens": 8, "n": 64})

    with ThreadPoolExecutor(24) as pool:
        found = list(pool.map(ask, range(24)))
    assert {status for status, _ in found} == {200, 429}, [status for status, _ in found]
    assert {answer["error"]["code"] for status, answer in found if status == 429} == {"queue_full"}


def test_parts_that_die_are_there_again_and_know_what_was_done(serving, decoder):  # noqa: F811
    """The ledger learns from the replicas; what comes in while there is no front is an error, and does not wait."""
    assert serving.admin("load", name="told", path="c")[0] == 200
    os.kill(engines(what="Ledger")[0], signal.SIGKILL)
    assert complete(serving, "told", [1, 2], 5) == greedy(decoder, "c", [1, 2], 5)
    assert serving.admin("load", name="a", load_inplace=True)[0] in (200, 503)
    serving.until(lambda: serving.admin("load", name="b", load_inplace=True)[0] == 200)
    assert complete(serving, "told", [1, 2], 5) == greedy(decoder, "c", [1, 2], 5)
    os.kill(engines(what="Front")[0], signal.SIGKILL)
    assert serving.ask("/v1/models")[0] in (200, 500, 503)
    serving.until(lambda: serving.get("/ready")[0] == 200)
    assert complete(serving, "told", [1, 2], 5) == greedy(decoder, "c", [1, 2], 5)
    assert serving.admin("unload", name="told")[0] == 200


def test_a_new_configuration_under_load_loses_no_request(serving, decoder, tmp_path):  # noqa: F811
    """Replicas are replaced one after the other; of their own they answer what they have.  An adapter whose folder is
    replaced meanwhile answers as the one or the other, never as anything else, and as the new one once it is told."""
    from ray import serve

    from dts.ray.app import app

    place = serving.adapters / "swap"
    shutil.copytree(serving.adapters / "a", place)
    shutil.copytree(serving.adapters / "b", tmp_path / "new")
    before, over, wrong, count = set(engines()), [], [], []
    one = {name: greedy(decoder, name, [3, 4, 5], 30) for name in "abc"}
    known = {name: {text} for name, text in one.items()} | {"swap": {one["a"], one["b"]}}
    assert len(known["swap"]) == 2

    def ask(name):
        while not over:
            try:
                if (text := complete(serving, name, [3, 4, 5], 30)) not in known[name]:
                    wrong.append((name, text))
                count.append(name)
            except openai.APIError as error:
                if name != "swap" or not isinstance(error, openai.NotFoundError):  # between the two renames
                    wrong.append(error)

    def replace():
        serving.until(lambda: set(engines()) - before, 200)  # of the new ones the first is there
        place.rename(tmp_path / "old")
        (tmp_path / "new").rename(place)

    with ThreadPoolExecutor(len(known) + 1) as pool:
        asked = [pool.submit(ask, name) for name in known] + [pool.submit(replace)]
        try:
            serve.run(app(serving.config["applications"][0]["args"] | {"slack": 3}), name="one", route_prefix="/")
            serving.until(lambda: len(engines()) == 2 and not before & set(engines()), 200)
        finally:
            over.append(True)
    assert all(thread.result() is None for thread in asked) and wrong == [] and len(count) > 10 and "swap" in count
    assert serving.admin("load", name="swap", load_inplace=True)[0] == 200
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(lambda _: complete(serving, "swap", [3, 4, 5], 30), range(8))) == {one["b"]}
    assert serving.admin("unload", name="swap")[0] == 200
    shutil.rmtree(place)


def test_a_replica_that_is_killed_takes_only_its_own_requests(serving, decoder):  # noqa: F811
    """Who was in it gets an error and does not wait; a new one learns what administrators did."""
    assert serving.admin("load", name="kept", path="b", pin=True)[0] == 200
    before = set(serving.state())
    names = ["a", "b", "c", "kept"] * 6
    prompts = [[40 + index, 2, 3] for index in range(len(names))]

    def ask(one):
        try:
            return complete(serving, *one, 100)
        except openai.APIStatusError as error:
            return error

    with ThreadPoolExecutor(len(names)) as pool:
        asked = [pool.submit(ask, one) for one in zip(names, prompts)]
        serving.until(lambda: all(state["running"] for state in serving.state().values()))
        os.kill(engines()[0], signal.SIGKILL)
        begun = time.monotonic()
        found = [one.result(150) for one in asked]
    errors = [one for one in found if isinstance(one, Exception)]
    assert 0 < len(errors) < len(names) and time.monotonic() - begun < 120
    assert {error.status_code for error in errors} == {503}, errors
    assert {error.code for error in errors} == {"replica_died"}
    kept = {"kept": "b"}
    for one, name, prompt in zip(found, names, prompts):
        assert isinstance(one, Exception) or one == greedy(decoder, kept.get(name, name), prompt, 100)
    # the other answers meanwhile; then there are two again, and both know
    assert complete(serving, "kept", [1, 2], 5) == greedy(decoder, "b", [1, 2], 5)
    serving.until(lambda: len(serving.state()) == 2 and set(serving.state()) != before, 180)
    serving.until(lambda: all("kept" in state["pinned"] for state in serving.state().values()))
    with ThreadPoolExecutor(8) as pool:
        said = set(pool.map(lambda _: complete(serving, "kept", [1, 2], 5), range(8)))
    assert said == {greedy(decoder, "b", [1, 2], 5)}


def test_a_stream_whose_replica_dies_ends_with_an_error(serving):
    how = dict(model="a", prompt="x", max_tokens=120, temperature=0, stream=True, n=8)
    stream = serving.client().completions.create(**how)
    next(stream)
    for process in engines():
        os.kill(process, signal.SIGKILL)
    with pytest.raises(openai.APIError, match="has died"):
        list(stream)
    # nobody is there: probes say so, requests wait for a new replica
    assert serving.get("/health")[0] in (200, 503)
    assert len(complete(serving, "a", [1, 2], 5)) >= 0


def test_what_was_taken_in_is_answered_when_the_application_is_deleted(serving, decoder):  # noqa: F811
    from ray import serve

    names = ["a", "b", "c", "base"] * 2
    with ThreadPoolExecutor(len(names)) as pool:
        asked = [pool.submit(complete, serving, name, [7, index, 3], 100) for index, name in enumerate(names)]
        serving.until(lambda: sum(state["running"] for state in serving.state().values()) == len(names))
        serve.delete("one")
        found = [one.result(120) for one in asked]
    assert found == [greedy(decoder, name, [7, index, 3], 100) for index, name in enumerate(names)]
    assert serving.ask("/two/classify", {"model": "mood", "input": "hello"}, "")[0] == 200


def test_more_requests_make_more_replicas(serving):
    """Of the application that was made for up to two, which Ray starts after half a minute of them."""
    replicas = lambda: serving.get("/two/admin/state", ADMIN)[1].get("replicas", {})  # noqa: E731
    assert len(replicas()) == 1
    said, over = set(), []

    def ask(index):
        while not over:
            status, found = serving.ask("/two/classify", {"model": "mood", "input": [5, 6, 7]}, "")
            said.add((status, round(found["data"][0]["probs"][0], 5) if status == 200 else str(found)))

    with ThreadPoolExecutor(6) as pool:
        asked = [pool.submit(ask, index) for index in range(6)]
        try:
            serving.until(lambda: len(replicas()) == 2, 240)
        finally:
            over.append(True)
    assert all(one.result() is None for one in asked) and len(said) == 1 and next(iter(said))[0] == 200, said
