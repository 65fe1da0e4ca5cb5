"""The routes: shapes, limits, keys, and errors that are answers.  What they say of a task is tested with the engine."""

import asyncio
import base64
import json
import math
import shutil
import time
from types import SimpleNamespace

import numpy
import pytest
import torch
import transformers

TestClient = pytest.importorskip("tests.dts.serve.client").TestClient

from prometheus_client.parser import text_string_to_metric_families  # noqa: E402
from pydantic import ValidationError  # noqa: E402

import dts  # noqa: E402
from dts.serve.choice import choice_of  # noqa: E402
from dts.serve.encode import padded  # noqa: E402
from dts.serve.http.app import application  # noqa: E402
from dts.serve.http.guard import Guard, Keys  # noqa: E402
from dts.serve.http.shapes import Chat, Completion, Embedding, Reranking  # noqa: E402
from dts.serve.metrics import LABELS, Metrics  # noqa: E402
from dts.serve.options import Limits, Options  # noqa: E402
from dts.serve.start import serve  # noqa: E402
from dts.serve.waiting import Batching  # noqa: E402
from tests.dts.serve.asking import alone  # noqa: E402
from tests.dts.serve.conftest import Place, changed  # noqa: E402

KEY, ADMIN = "a key of callers 123", "a key of admins 4567"


def client(place, api=(), admin=(), **options):
    metrics = Metrics()
    served = serve(Options(str(place.base), place.adapters, device="cpu", **options), metrics)
    served.engine.start()
    made = TestClient(application(served, metrics, api, admin), raise_server_exceptions=False)
    made.served = served
    return made


@pytest.fixture(scope="module")
def llm(decoder):
    limits = Limits(body=20_000, tokens=64, rows=4)
    made = client(decoder, limits=limits)
    yield made
    assert made.served.engine.drain(60)


@pytest.fixture(scope="module")
def bert(encoder):
    made = client(encoder, batching=Batching(wait=0))
    yield made
    assert made.served.engine.drain(60)


def test_models_are_the_base_and_its_tasks(llm):
    found = llm.get("/v1/models").json()
    assert found["object"] == "list" and [one["id"] for one in found["data"]] == ["base", "a", "b", "c"]
    assert [one["parent"] for one in found["data"]] == [None, "base", "base", "base"]
    assert found["data"][1]["root"] == "a" and found["data"][0]["max_model_len"] == 128
    assert llm.get("/v1/models/b").json()["id"] == "b" and llm.get("/v1/models/zzz").status_code == 404


@pytest.mark.parametrize("model", ["base", "a", "a:0.7,b:0.3"])
def test_completions_are_the_single_task_models(decoder, llm, model):
    body = {"model": model, "prompt": [[70, 71, 72, 73, 74], [9, 10, 11]], "temperature": 0, "max_tokens": 8, "n": 2}
    found = llm.post("/v1/completions", json=body).json()
    expected = [alone(decoder, llm.served, model, ids, 8) for ids in body["prompt"]]
    assert [one["text"] for one in found["choices"]] == [text for text in expected for _ in range(2)]
    assert [one["index"] for one in found["choices"]] == [0, 1, 2, 3]
    assert {one["finish_reason"] for one in found["choices"]} <= {"length", "stop"}
    usage = found["usage"]
    assert usage["prompt_tokens"] == 8 and usage["total_tokens"] == 8 + usage["completion_tokens"] <= 8 + 32
    assert found["object"] == "text_completion" and found["model"] == model


def events(response):
    assert response.status_code == 200 and response.headers["content-type"].startswith("text/event-stream")
    lines = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
    assert lines.pop() == "[DONE]"
    return [json.loads(line) for line in lines]


def test_a_chat_streams_what_it_says_whole(llm):
    body = {"model": "b", "messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]}
    body |= {"temperature": 0, "max_completion_tokens": 12}
    whole = llm.post("/v1/chat/completions", json=body).json()
    chunks = events(llm.post("/v1/chat/completions", json=body | {"stream": True}))
    parts = [chunk["choices"][0] for chunk in chunks]
    assert parts[0]["delta"]["role"] == "assistant" and not any("role" in part["delta"] for part in parts[1:])
    assert "".join(part["delta"].get("content", "") for part in parts) == whole["choices"][0]["message"]["content"]
    assert [part["finish_reason"] for part in parts[:-1]] == [None] * (len(parts) - 1)
    assert parts[-1]["finish_reason"] == whole["choices"][0]["finish_reason"]
    assert whole["usage"]["prompt_tokens"] == len("<user>hi<assistant>")
    body |= {"stream": True, "stream_options": {"include_usage": True}}
    chunks = events(llm.post("/v1/chat/completions", json=body))
    assert chunks[-1]["choices"] == [] and chunks[-1]["usage"] == whole["usage"]
    assert all(chunk["usage"] is None for chunk in chunks[:-1])


def test_answers_to_seeds_and_several_answers(llm):
    body = {"model": "a", "prompt": "seeded", "max_tokens": 10, "seed": 3, "n": 2}
    first, again = (llm.post("/v1/completions", json=body).json()["choices"] for _ in range(2))
    assert [one["text"] for one in first] == [one["text"] for one in again]
    assert first[0]["text"] != first[1]["text"]


def scores(place, llm, model, ids, answer):
    """Log probabilities [tokens, vocabulary] of an answer's tokens, by the dense model."""
    with torch.no_grad():
        logits = place.single((model, 1.0))(torch.tensor([[*ids, *answer]])).logits[0]
    return logits[len(ids) - 1 : -1].log_softmax(-1)


def test_probabilities_of_completions_and_chats(decoder, llm):
    ids, encode = [70, 71, 72], llm.served.texts.base.encode
    body = {"model": "a", "prompt": ids, "temperature": 0, "max_tokens": 5}
    plain = llm.post("/v1/completions", json=body).json()["choices"][0]
    assert plain["logprobs"] is None
    single = decoder.single(("a", 1.0)).generate(torch.tensor([ids]), max_new_tokens=5, do_sample=False)[0, 3:].tolist()
    answer = [token for token in single if token != 1]
    expected = scores(decoder, llm, "a", ids, answer)
    found = llm.post("/v1/completions", json=body | {"logprobs": 2}).json()["choices"][0]
    told = found["logprobs"]
    assert found["text"] == plain["text"] and len(told["tokens"]) == len(answer) == len(told["top_logprobs"])
    assert numpy.allclose(told["token_logprobs"], [row[t] for row, t in zip(expected, answer)], atol=1e-4)
    lengths = numpy.cumsum([0, *map(len, told["tokens"])])
    assert told["text_offset"] == lengths[:-1].tolist()
    streamed = events(llm.post("/v1/completions", json=body | {"logprobs": 2, "stream": True}))
    parts = [chunk["choices"][0]["logprobs"] for chunk in streamed]
    for what in ("tokens", "text_offset", "token_logprobs"):
        assert sum((part[what] for part in parts), []) == pytest.approx(told[what]) or what == "tokens"
    ids = encode("<user>hi<assistant>")
    body = {"model": "b", "messages": [{"role": "user", "content": "hi"}], "temperature": 0, "max_tokens": 4}
    found = llm.post("/v1/chat/completions", json=body | {"logprobs": True, "top_logprobs": 3}).json()["choices"][0]
    content = found["logprobs"]["content"]
    out = decoder.single(("b", 1.0)).generate(torch.tensor([ids]), max_new_tokens=4, do_sample=False)[0, len(ids) :]
    answer = [token for token in out.tolist() if token != 1]
    assert [one["logprob"] for one in content] == pytest.approx(
        [float(row[t]) for row, t in zip(scores(decoder, llm, "b", ids, answer), answer)], abs=1e-4
    )
    assert all(len(one["top_logprobs"]) == 3 and one["top_logprobs"][0]["logprob"] >= one["logprob"] for one in content)
    assert all(one["bytes"] in (None, list(one["token"].encode())) for one in content)
    error = llm.post("/v1/chat/completions", json=body | {"top_logprobs": 3})
    assert error.status_code == 400 and "top_logprobs" in error.json()["error"]["message"]


def test_an_input_chooses_its_task(decoder, encoder, llm, bert):
    """Whatever it is: the answer is that of the task that the router names, and says so."""
    texts = ["one", "another text", "zzz"]
    found = bert.post("/classify", json={"model": "auto", "input": texts}).json()
    ids = [bert.served.texts.base.encode(text) for text in texts]
    engine = bert.served.engine
    chosen = engine.do(
        lambda: [engine.model.choose_tasks(padded([row], 0, engine.model.device)).tasks[0] for row in ids]
    )
    assert [row["task"] for row in found["data"]] == chosen
    for row, name, tokens in zip(found["data"], chosen, ids):
        named = bert.post("/classify", json={"model": name, "input": tokens}).json()["data"][0]
        assert row["label"] == named["label"] and numpy.allclose(row["probs"], named["probs"], atol=1e-5)
    body = {"model": "auto", "prompt": [9, 10, 11], "temperature": 0, "max_tokens": 6}
    one = llm.post("/v1/completions", json=body).json()
    assert one["model"] == one["choices"][0]["task"] in ("a", "b", "c")
    assert one["choices"][0]["text"] == alone(decoder, llm.served, one["model"], body["prompt"], 6)
    chunks = events(llm.post("/v1/completions", json=body | {"stream": True}))
    assert {chunk["model"] for chunk in chunks} == {one["model"]}


def test_auto_says_where_it_cannot_choose(decoder, llm, monkeypatch, tmp_path):
    def cannot(batch):
        raise ValueError("no compressed matrix of the adapters")

    with monkeypatch.context() as patch:
        patch.setattr(llm.served.engine.model, "choose_tasks", cannot)
        error = llm.post("/v1/completions", json=GOOD | {"model": "auto"})
    assert error.status_code == 400 and "no compressed matrix" in error.json()["error"]["message"]
    (tmp_path / "none").mkdir()
    empty = client(SimpleNamespace(base=decoder.base, adapters=tmp_path / "none"))
    error = empty.post("/v1/completions", json=GOOD | {"model": "auto"})
    assert error.status_code == 400 and "no task is there" in error.json()["error"]["message"]
    assert empty.served.engine.drain(60)


def test_documents_are_ranked_by_a_task_of_one_class(encoder, bert, tmp_path):
    place = Place(tmp_path, ["rank"])
    shutil.copytree(encoder.base, place.base)
    tuned = transformers.BertForSequenceClassification.from_pretrained(place.base, num_labels=1)
    changed(tuned, 5).save_pretrained(tmp_path / "rank")
    dts.compress(place.base, tmp_path / "rank", out=place.adapters / "rank", rank_fraction=0.5)
    ranks = client(place)
    ranks.served.texts.base.tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    documents = ["first", {"text": "the second, which is longer"}, "third one"]
    body = {"model": "rank", "query": "which?", "documents": documents}
    found = ranks.post("/rerank", json=body).json()
    single, expected = place.single(("rank", 1.0)), {}
    for index, text in enumerate(["first", "the second, which is longer", "third one"]):
        given = ranks.served.texts.base.tokenizer("which?", text, return_tensors="pt")
        with torch.no_grad():
            expected[index] = float(single(**given).logits[0, 0].sigmoid())
        assert given["token_type_ids"].any()
    assert [one["index"] for one in found["results"]] == sorted(expected, key=lambda i: -expected[i])
    assert all(one["relevance_score"] == pytest.approx(expected[one["index"]], abs=1e-5) for one in found["results"])
    assert found["results"][0]["document"]["text"] and found["usage"]["total_tokens"] > 0
    few = ranks.post("/v1/rerank", json=body | {"top_n": 1, "return_documents": False}).json()["results"]
    assert len(few) == 1 and "document" not in few[0] and few[0]["index"] == found["results"][0]["index"]
    for wrong in ({"documents": []}, {"documents": [""]}, {"query": ""}, {"documents": "x"}, {"top_n": -1}):
        assert ranks.post("/rerank", json=body | wrong).status_code == 400
    assert ranks.served.engine.drain(60)
    error = bert.post("/rerank", json=body | {"model": "topic"})
    assert error.status_code == 400 and error.json()["error"]["code"] == "not_a_reranker"


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/embeddings", "/classify", "/rerank"])
def test_a_client_that_has_gone_is_no_error(llm, bert, caplog, path):
    asked, sent = llm if path == "/v1/completions" else bert, []
    body = {"/v1/completions": GOOD, "/rerank": {"model": "mood", "query": "x", "documents": ["y"]}}
    given = json.dumps(body.get(path, {"model": "mood", "input": "x"})).encode()
    coming = [{"type": "http.request", "body": given}, {"type": "http.disconnect"}]
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(given)).encode())]
    scope = {"type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "query_string": b""}

    async def receive():
        return coming.pop(0)

    async def send(message):
        sent.append(message)

    asyncio.run(asked.app(scope | {"headers": headers}, receive, send))
    assert sent[0]["status"] == 499 and not coming and not caplog.records


@pytest.mark.parametrize("stopping, status", [(False, 408), (True, 503)])
def test_half_a_body_is_not_waited_for_for_ever(stopping, status):
    sent, coming = [], [{"type": "http.request", "body": b"{", "more_body": True}]

    async def receive():
        return coming.pop(0) if coming else await asyncio.sleep(60)

    async def send(message):
        sent.append(message)

    guard = Guard(None, Keys((), ()), 100, seconds=0.05, stopping=lambda: stopping)
    scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": [(b"content-length", b"9")]}
    asyncio.run(guard(scope, receive, send))
    assert sent[0]["status"] == status and json.loads(sent[1]["body"])["error"]["code"]


def guarded(guard, headers, *messages):
    """(status, headers, body) that a guard alone answers what comes so with."""
    sent, coming = [], list(messages)

    async def receive():
        return coming.pop(0) if coming else await asyncio.sleep(60)

    async def send(message):
        sent.append(message)

    async def ask():
        await guard({"type": "http", "method": "POST", "path": "/", "headers": headers}, receive, send)
        return sent[0]["status"], dict(sent[0]["headers"]), json.loads(sent[1]["body"])

    return ask()


def test_a_body_whose_end_is_said_in_two_ways_is_refused_and_its_connection_closed():
    """A proxy may take the other of the two, and what is left of the body for a request of somebody else."""
    headers = [(b"content-length", b"4"), (b"transfer-encoding", b"chunked")]
    guard = Guard(None, Keys((), ()), 100, seconds=5)
    status, told, body = asyncio.run(guarded(guard, headers, {"type": "http.request", "body": b"{}"}))
    assert status == 400 and told[b"connection"] == b"close" and body["error"]["code"] == "invalid_http"


def test_bodies_on_their_way_take_no_more_memory_than_is_allowed(monkeypatch):
    monkeypatch.setattr("dts.serve.http.guard.BODIES", 1)
    monkeypatch.setattr("dts.serve.http.guard.SMALL", 10)
    part = lambda size: {"type": "http.request", "body": b"x" * size, "more_body": True}  # noqa: E731
    whole = {"type": "http.request", "body": b"{}", "more_body": False}

    async def well(scope, receive, send):
        body = (await receive())["body"]
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": json.dumps(len(body)).encode()})

    async def ask():
        guard = Guard(well, Keys((), ()), 100, seconds=5)
        slow = asyncio.ensure_future(guarded(guard, [], part(90)))
        await asyncio.sleep(0)
        second = await guarded(guard, [], part(50), whole)
        small = await guarded(guard, [], part(5), whole)
        slow.cancel()
        await asyncio.gather(slow, return_exceptions=True)
        return second, small, await guarded(guard, [], part(50), whole), guard.held

    second, small, after, held = asyncio.run(ask())
    assert second[0] == 503 and second[2]["error"]["code"] == "busy" and second[1][b"retry-after"] == b"1"
    assert (small[0], small[2]) == (200, 7) and (after[0], after[2]) == (200, 52) and held == 0


@pytest.mark.parametrize(
    "path, body, name",
    [
        ("/v1/completions", '{"model": "a", "prompt": "x", "model": "b"}', "model"),
        ("/v1/completions", '{"model": "a", "prompt": "x", "max_tokens": 1, "max_\\u0074okens": 1}', "max_tokens"),
        ("/v1/chat/completions", '{"model": "a", "messages": [{"role": "user", "content": "", "role": "x"}]}', "role"),
        ("/v1/embeddings", '{"model": "a", "model": "a", "input": "x"}', "model"),
    ],
)
def test_a_body_that_says_something_twice_is_refused(llm, path, body, name):
    found = llm.post(path, content=body, headers={"Content-Type": "application/json"})
    error = found.json()["error"]
    assert found.status_code == 400 and error["param"] == name and error["code"] == "invalid_json"
    assert error["message"] == f"the body says {name!r} twice in one object"


def test_who_watches_may_ask_for_no_body_and_a_wrong_route_is_told_the_right_ones(llm):
    for path in ("/health", "/ready"):
        found = llm.head(path)
        assert found.status_code == 200 and found.headers["x-request-id"]
    for path in ("/completions", "/v1/completions/"):  # no redirect to a host that a client names
        found = llm.post(path, json=GOOD, follow_redirects=False)
        message = found.json()["error"]["message"]
        assert found.status_code == 404 and message.startswith(f"POST {path}: Not Found; there are ")
        assert "/v1/completions, " in message and "/openapi.json" not in message


def test_embeddings_and_classes(encoder, bert):
    found = bert.post("/v1/embeddings", json={"model": "topic", "input": ["one", "another"]}).json()
    vectors = [one["embedding"] for one in found["data"]]
    assert [len(one) for one in vectors] == [32, 32] and math.isclose(numpy.linalg.norm(vectors[0]), 1, rel_tol=1e-5)
    body = {"model": "topic", "input": "one", "encoding_format": "base64"}
    coded = bert.post("/v1/embeddings", json=body).json()["data"][0]["embedding"]
    assert numpy.allclose(numpy.frombuffer(base64.b64decode(coded), "<f4"), vectors[0], atol=1e-5)
    for model, names in {"mood": ["sad", "glad"], "topic": ["sport", "news", "art"]}.items():
        found = bert.post("/classify", json={"model": model, "input": "one"}).json()
        ids = torch.tensor([bert.served.texts.base.encode("one")])
        with torch.no_grad():
            expected = encoder.single((model, 1.0))(ids).logits[0].softmax(0)
        row = found["data"][0]
        assert numpy.allclose(row["probs"], expected.numpy(), atol=1e-5) and row["num_classes"] == len(names)
        assert row["label"] == names[int(expected.argmax())] and found["usage"]["prompt_tokens"] == 3
    error = bert.post("/classify", json={"model": "base", "input": "x"})
    assert error.status_code == 400 and "classifier" in error.json()["error"]["message"]


def test_a_tokenizer_without_a_chat_template_says_so(bert, llm, monkeypatch):
    body = {"model": "a", "messages": [{"role": "user", "content": "x"}]}
    monkeypatch.setattr(llm.served.texts.base.tokenizer, "chat_template", None)
    error = llm.post("/v1/chat/completions", json=body)
    assert error.status_code == 400 and error.json()["error"]["code"] == "no_chat_template"
    error = bert.post("/v1/chat/completions", json=body | {"model": "mood"})
    assert error.status_code == 400 and "encoder" in error.json()["error"]["message"]


JSON = {"Content-Type": "application/json"}
GOOD = {"model": "a", "prompt": "x", "max_tokens": 1}
DIGITS = (b'{"model": "a", "prompt": "x", "seed": ' + b"9" * 5000 + b"}", 400)
WRONG = {
    "no JSON": (b"{", 400),
    "no UTF-8": (b"\xff\xfe", 400),
    "nested": (b"[" * 9000, 400),
    "a list": (b"[]", 400),
    "nothing": (b"", 400),
    "half a character": (b'{"model": "a", "prompt": "\\ud800"}', 400),
    "half a character as a name": (b'{"model": "\\ud800", "prompt": "x"}', 400),
    "half a character as a field": (b'{"model": "a", "prompt": "x", "\\ud800": 1}', 400),
    "NaN": (b'{"model": "a", "prompt": "x", "temperature": NaN}', 400),
    "infinity": (b'{"model": "a", "prompt": "x", "temperature": Infinity}', 400),
    "huge": (json.dumps(GOOD | {"prompt": "x" * 30_000}).encode(), 413),
    "unknown model": ({"model": "nobody"}, 404),
    "path as a model": ({"model": "../a"}, 404),
    "absolute path": ({"model": "/etc/passwd"}, 404),
    "NUL": ({"model": "a\0"}, 404),
    "no model": ({"model": None}, 400),
    "negative tokens": ({"max_tokens": -1}, 400),
    "no tokens": ({"max_tokens": 0}, 400),
    "too many tokens": ({"max_tokens": 65}, 400),
    "tokens in words": ({"max_tokens": "many"}, 400),
    "half a token": ({"max_tokens": 1.5}, 400),
    "negative temperature": ({"temperature": -0.1}, 400),
    "top_p 0": ({"top_p": 0}, 400),
    "many answers": ({"n": 5}, 400),
    "a billion answers": ({"n": 1_000_000_000}, 400),
    "many prompts": ({"prompt": ["x"] * 5}, 400),
    "an empty prompt": ({"prompt": ""}, 400),
    "no prompt": ({"prompt": []}, 400),
    "a long prompt": ({"prompt": "x" * 129}, 400),
    "no room for an answer": ({"prompt": "x" * 120, "max_tokens": 9}, 400),
    "a token of none": ({"prompt": [1, 258]}, 400),
    "a negative token": ({"prompt": [-1]}, 400),
    "a huge seed": ({"seed": 1 << 70}, 400),
    "many logprobs": ({"logprobs": 21}, 400),
    "a priority in words": ({"priority": "high"}, 400),
    "a huge priority": ({"priority": 1 << 40}, 400),
    "an unknown field": ({"frobnicate": 1}, 400),
    "an unknown field that is not so": ({"frobnicate": False}, 400),
    "no special tokens": ({"add_special_tokens": False}, 400),
    "special tokens in the text": ({"skip_special_tokens": False}, 400),
    "true answers": ({"best_of": True}, 400),
    "thousands of fields": ({str(i): 1 for i in range(1000)}, 400),
    "a number of thousands of digits": DIGITS,
    "usage without a stream": ({"stream_options": {"include_usage": True}}, 400),
    "a mixture of nobody": ({"model": "a:0.5,nobody:0.5"}, 404),
    "a mixture of NaN": ({"model": "a:nan,b:1"}, 400),
    "a mixture of Python's numbers": ({"model": "a:1_0,b:1"}, 400),
    "a mixture of another alphabet's numbers": ({"model": "a:\N{ARABIC-INDIC DIGIT THREE},b:1"}, 400),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_is_told_in_openais_shape(llm, what):
    given, status = WRONG[what]
    body = given if isinstance(given, bytes) else json.dumps(GOOD | given).encode()
    found = llm.post("/v1/completions", content=body, headers={"Content-Type": "application/json"})
    assert found.status_code == status, found.text
    error = found.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["message"]
    assert "Traceback" not in found.text and 'File "' not in found.text
    assert llm.get("/health").status_code == 200


@pytest.mark.parametrize("prompt", [5, ["x", 5], [1, "x"], [[1], []], [], "", "\ud800", [1, 258], ["x"] * 5])
def test_errors_name_the_field_that_was_sent(llm, bert, prompt):
    """Of a request's rows, whichever of its fields they are and wherever a mistake is noticed."""
    for asked, path, field in ((llm, "/v1/completions", "prompt"), (bert, "/classify", "input")):
        given = ["x"] * 65 if prompt == ["x"] * 5 else [1, 10_000] if prompt == [1, 258] else prompt
        found = asked.post(path, content=json.dumps({"model": "base", field: given}), headers=JSON)
        assert found.status_code == 400 and found.json()["error"]["param"] == field, found.text
        assert found.json()["error"]["message"].count(field) <= 1


def test_errors_of_parts_name_the_part(llm, bert):
    image = {"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}
    for asked, path, body, field in (
        (llm, "/v1/completions", {"prompt": "x", "stop": 5}, "stop"),
        (llm, "/v1/completions", {"prompt": "x", "stop": ["a", 5]}, "stop.1"),
        (llm, "/v1/chat/completions", {"messages": [{"role": "user", "content": 5}]}, "messages.0.content"),
        (llm, "/v1/chat/completions", {"messages": [image]}, "messages.0.content.0.image_url"),
        (llm, "/v1/embeddings", {"input": [[1, -1]]}, "input"),
        (bert, "/rerank", {"query": "x", "documents": ["a", 5]}, "documents.1"),
        (bert, "/rerank", {"query": "x", "documents": [""]}, "documents"),
        (bert, "/rerank", {"query": "", "documents": ["a"]}, "query"),
        (bert, "/rerank", {"query": "x", "documents": ["x" * 9_000]}, "documents"),
    ):
        found = asked.post(path, json={"model": "base"} | body)
        assert found.status_code == 400 and found.json()["error"]["param"] == field, (body, found.text)


def test_without_a_tokenizer_there_are_token_ids(llm, bert, monkeypatch):
    message = {"role": "user", "content": "x"}
    for asked, path, body, says in (
        (llm, "/v1/completions", {"prompt": "x"}, "send lists of token ids"),
        (llm, "/v1/chat/completions", {"messages": [message]}, "ask /v1/completions with lists of token ids"),
        (bert, "/rerank", {"query": "x", "documents": ["y"]}, "it reads no pairs of texts"),
    ):
        monkeypatch.setattr(asked.served.texts.base, "tokenizer", None)
        error = asked.post(path, json={"model": "base"} | body)
        assert error.status_code == 400 and error.json()["error"]["code"] == "no_tokenizer", error.text
        assert says in error.json()["error"]["message"]


@pytest.mark.parametrize(
    "body, says",
    [(b"[" * 9000, "nested too deeply"), (b'{"model": "\xff"}', "UTF-8"), (DIGITS[0], "thousands of digits")],
)
def test_a_body_that_is_not_read_is_told_why(llm, body, says):
    error = llm.post("/v1/completions", content=body, headers=JSON).json()["error"]
    assert says in error["message"] and error["code"] == "invalid_json"
    assert says == "UTF-8" or "compressed" not in error["message"]


def test_an_unknown_model_is_told_those_there_are(llm):
    error = llm.post("/v1/completions", json=GOOD | {"model": "nobody"}).json()["error"]
    assert error["code"] == "model_not_found" and all(name in error["message"] for name in ("a", "b", "c", "base"))


def test_neutral_fields_of_clients_are_taken_and_unknown_routes_are_errors(llm):
    body = GOOD | {"frequency_penalty": 0, "logprobs": None, "echo": False, "user": "me", "best_of": 1, "n": None}
    body |= {"top_k": -1, "add_special_tokens": True, "skip_special_tokens": True, "ignore_eos": False, "stream": None}
    assert llm.post("/v1/completions", json=body).status_code == 200
    assert llm.post("/v1/completions", json=body | {"logprobs": False}).status_code == 200
    wrong = llm.get("/v1/completions")
    assert wrong.status_code == 405 and wrong.headers["allow"] == "POST"
    assert llm.get("/nowhere").json()["error"]["message"]


def test_a_body_that_nobody_said_is_json(llm):
    """As curl's -d sends it."""
    for kind in ("application/x-www-form-urlencoded", "text/plain"):
        found = llm.post("/v1/completions", content=json.dumps(GOOD), headers={"Content-Type": kind})
        assert found.status_code == 400 and "Content-Type: application/json" in found.json()["error"]["message"]
    found = llm.post("/v1/completions", content=b"\x1f\x8b\x08\x00", headers={"Content-Type": "application/json"})
    assert found.json()["error"]["code"] == "invalid_json"


@pytest.mark.parametrize(
    "kind, given",
    [
        (Completion, {"prompt": [None] * 10_000}),
        (Completion, {"prompt": [[]] * 10_000}),
        (Completion, {"prompt": "x", "stop": [0] * 10_000}),
        (Completion, {"prompt": "x", **{str(i): 1 for i in range(10_000)}}),
        (Chat, {"messages": [{}] * 10_000}),
        (Chat, {"messages": [{"role": "user", "content": [0] * 10_000}]}),
        (Chat, {"messages": [{"role": "user", "content": "x", **{str(i): 1 for i in range(10_000)}}]}),
        (Embedding, {"input": [[None]] * 10_000}),
        (Reranking, {"query": "x", "documents": [0] * 10_000}),
    ],
)
def test_of_many_mistakes_few_are_looked_at(kind, given):
    """An error for each held every other answer up, half a minute for a body of one megabyte."""
    with pytest.raises(ValidationError) as error:
        kind.model_validate({"model": "a"} | given)
    assert error.value.error_count() < 20


def test_a_body_without_a_length_is_bounded_too(llm):
    parts = (b"x" * 1000 for _ in range(1000))
    assert llm.post("/v1/completions", content=parts).status_code == 413


def test_keys(decoder):
    guarded = client(decoder, [KEY, "another key, 1234567"], [ADMIN])
    bearer = lambda key: {"Authorization": f"Bearer {key}"}  # noqa: E731
    assert guarded.get("/health").status_code == guarded.get("/ready").status_code == 200
    for path in ("/v1/models", "/metrics", "/nowhere"):
        for headers in ({}, bearer("wrong"), {"Authorization": KEY}, {"Authorization": f"Basic {KEY}"}, bearer("")):
            found = guarded.get(path, headers=headers)
            assert (
                found.status_code == 401 and found.headers["www-authenticate"] == "Bearer" and "error" in found.json()
            )
        assert guarded.get(path, headers=bearer(KEY)).status_code != 401
    assert guarded.get("/v1/models", headers=bearer("another key, 1234567")).status_code == 200
    for path in ("/admin/load", "/admin/unload", "/v1/load_lora_adapter", "/v1/unload_lora_adapter"):
        assert guarded.post(path, json={}).status_code == 401
        assert guarded.post(path, json={}, headers=bearer(KEY)).status_code == 403
        assert guarded.post(path, json={}, headers=bearer(ADMIN)).status_code == 400
    assert guarded.served.engine.drain(60)


def test_nobody_is_admin_where_there_is_no_key(llm):
    assert llm.post("/admin/load", json={"name": "a"}).status_code == 403


def test_admins_load_and_unload(decoder):
    open_one = client(decoder, admin=[ADMIN])
    open_one.headers["Authorization"] = f"Bearer {ADMIN}"
    load = {"lora_name": "nick", "lora_path": "a"}
    assert "added" in open_one.post("/v1/load_lora_adapter", json=load).text
    assert open_one.post("/v1/load_lora_adapter", json=load).status_code == 400
    assert open_one.post("/v1/load_lora_adapter", json=load | {"load_inplace": True}).status_code == 200
    assert open_one.get("/v1/models/nick").json()["root"] == "a"
    body = {"prompt": "hello", "max_tokens": 6, "temperature": 0}
    same = [open_one.post("/v1/completions", json=body | {"model": name}).json() for name in ("a", "nick")]
    assert same[0]["choices"] == same[1]["choices"]
    for path in ("../..", "/etc", str(decoder.base), ".", "nothing"):
        for extra in ("", "\0"):
            found = open_one.post("/v1/load_lora_adapter", json={"lora_name": "bad", "lora_path": path + extra})
            assert found.status_code in (400, 404), path
    state = open_one.post("/admin/load", json={"name": "b", "pin": True}).json()
    assert state["pinned"] == ["b"] and set(state["loaded"]) == {"a", "b", "nick"}
    assert "removed" in open_one.post("/v1/unload_lora_adapter", json={"lora_name": "nick"}).text
    assert open_one.post("/v1/unload_lora_adapter", json={"lora_name": "nick"}).status_code == 404
    assert open_one.get("/v1/models/nick").status_code == 404
    assert set(open_one.get("/admin/state").json()["loaded"]) == {"a", "b"}
    assert open_one.served.engine.drain(60)


def test_a_full_queue_says_when_to_come_again_and_a_stopping_server_that_it_is(decoder):
    small = client(decoder, batching=Batching(queue=1), limits=Limits(rows=1))
    waiting = small.served.engine.waiting
    waiting.batching = Batching(queue=0)
    found = small.post("/v1/completions", json=GOOD)
    assert found.status_code == 429 and int(found.headers["retry-after"]) >= 1
    assert found.json()["error"]["type"] == "rate_limit_error"
    assert small.served.engine.drain(60)
    assert small.get("/ready").status_code == 503
    assert small.post("/v1/completions", json=GOOD).status_code == 503


def test_figures_are_prometheus_and_their_labels_bounded(llm):
    body = {"model": "c", "prompt": "count me", "max_tokens": 5, "temperature": 0}
    new = llm.post("/v1/completions", json=body).json()["usage"]["completion_tokens"]
    llm.post("/v1/completions", json=body | {"model": "a:0.123,c:0.877"})
    while llm.served.engine.running:  # answers are told before their batch has ended
        time.sleep(0.01)
    text = llm.get("/metrics").text
    found = {
        s.name: s.value
        for f in text_string_to_metric_families(text)
        for s in f.samples
        if s.labels.get("model_name") in (None, "c")
    }
    assert found["dts:prompt_tokens_total"] == 8 and found["dts:generation_tokens_total"] == new
    assert found["dts:time_to_first_token_seconds_count"] == 1
    assert found["dts:inter_token_latency_seconds_count"] == new - 1
    assert found["dts:num_requests_running"] == 0 and found["dts:num_requests_waiting"] == 0
    assert found["dts:adapters_loaded"] >= 1 and 'model_name="mixture"' in text and '"a:0.123' not in text
    metrics = Metrics()
    names = {metrics.label(choice_of(f"task{i}", "base")) for i in range(3 * LABELS)}
    assert len(names) == LABELS + 1 and "other" in names


def test_every_answer_has_an_id_and_a_line_in_the_log(llm, caplog):
    with caplog.at_level("INFO", logger="dts.serve.access"):
        assert llm.get("/v1/models", headers={"X-Request-Id": "mine-1"}).headers["x-request-id"] == "mine-1"
        assert llm.get("/v1/models", headers={"X-Request-Id": "a\tb"}).headers["x-request-id"] != "a\tb"
    lines = [json.loads(record.message) for record in caplog.records if record.name == "dts.serve.access"]
    assert lines[0]["id"] == "mine-1" and lines[0]["status"] == 200 and lines[0]["path"] == "/v1/models"


def test_an_error_of_the_server_is_told_without_its_inside(llm, monkeypatch):
    monkeypatch.setattr(llm.served.engine, "submit", lambda job: 1 / 0)
    found = llm.post("/v1/completions", json=GOOD)
    assert found.status_code == 500 and found.json()["error"]["code"] == "internal_error"
    assert "division" not in found.text and found.headers["x-request-id"] in found.text
