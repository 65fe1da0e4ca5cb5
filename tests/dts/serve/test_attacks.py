"""Nothing that a client sends is answered with 500, shows the server's inside, or ends a worker."""

import json
import threading

import pytest

TestClient = pytest.importorskip("tests.dts.serve.client").TestClient

from dts.serve.http.app import application  # noqa: E402
from dts.serve.metrics import Metrics  # noqa: E402
from dts.serve.options import Limits, Options  # noqa: E402
from dts.serve.start import serve  # noqa: E402

ADMIN = "a key of admins 4567"
MESSAGES = [{"role": "user", "content": "hi"}]
GENERATION = {"model": "a", "max_tokens": 1, "n": 1, "seed": 1, "stop": "x", "temperature": 0.5, "top_p": 0.5}
GENERATION |= {"stream": False, "priority": 0}
BODIES = {
    "/v1/completions": GENERATION | {"prompt": "x", "logprobs": 1},
    "/v1/chat/completions": GENERATION | {"messages": MESSAGES, "logprobs": True, "top_logprobs": 1},
    "/v1/embeddings": {"model": "a", "input": "x", "encoding_format": "float"},
    "/classify": {"model": "mood", "input": "x"},
    "/rerank": {"model": "mood", "query": "x", "documents": ["y"], "top_n": 1},
    "/admin/load": {"name": "a", "path": "a", "load_inplace": True, "pin": False},
    "/v1/load_lora_adapter": {"lora_name": "a", "lora_path": "a", "load_inplace": True},
}
BAD = [
    *(None, True, -1, 0, 1 << 63, -(1 << 80), 1e308, float("nan"), float("-inf"), 0.5),
    *(
        "",
        "auto",
        "\0",
        "\ud800",
        "../a",
        "/etc/passwd",
        "a:nan,b:1",
        "a:1e308,b:1e308",
        "a:-1,b:1",
        ":",
        ",",
        "a:1," * 40,
    ),
    *("x" * 5000, "\N{RIGHT-TO-LEFT OVERRIDE}\N{PILE OF POO}", "%s%n{0}", "<script>", "\r\nX: y"),
    *([], [[]], [None], [[[1]]], [-1], [1 << 70], ["a", 1], [0.5], [""] * 100, [1] * 500, [True], {}, {"a": {"b": []}}),
    *([{"role": "user"}], [{"role": "user", "content": None}], [{"role": "", "content": [{"type": "image_url"}]}]),
    [{"role": "\ud800", "content": "\0"}],
]
RAW = [
    *(
        b"",
        b"null",
        b"[]",
        b"{",
        b"[" * 5000,
        b'{"a":' * 3000,
        b"\xff\xfe\x00",
        b"NaN",
        b'"' + b"\\u0000" * 99 + b'"',
        b"{}" * 2,
    ),
    *(b'{"model": "a", "model": 1}', b"1" * 6000, b"\x1f\x8b\x08\x00\x00", b"a=b&c=d", b'{"__proto__": {"x": 1}}'),
]


@pytest.fixture(scope="module")
def servers(decoder, encoder):
    made = {}
    for place in (decoder, encoder):
        served = serve(
            Options(str(place.base), place.adapters, device="cpu", limits=Limits(body=9000, tokens=8, rows=4))
        )
        served.engine.start()
        made[place] = TestClient(application(served, Metrics(), (), [ADMIN]), raise_server_exceptions=False)
        made[place].served = served
        made[place].headers["Authorization"] = f"Bearer {ADMIN}"
    yield list(made.values())
    for client in made.values():
        assert client.get("/health").status_code == 200 and client.served.engine.drain(60)


def send(client, path, data, **headers):
    found = client.post(path, content=data, headers={"Content-Type": "application/json"} | headers)
    assert found.status_code == 200 or 400 <= found.status_code < 500 or found.status_code in (503, 507), (
        path,
        data[:300],
        found.status_code,
        found.text[:300],
    )
    text = found.text
    assert "Traceback" not in text and 'File "' not in text and "internal" not in text, (path, data[:300], text[:300])
    if found.status_code >= 400 and found.headers["content-type"] == "application/json":
        assert set(found.json()["error"]) == {"message", "type", "param", "code"}
    return found


@pytest.mark.parametrize("path", BODIES)
def test_every_field_with_everything(servers, path):
    client = servers[path in ("/classify", "/rerank")]
    good = BODIES[path]
    refused = 0
    for field in good:
        for value in BAD:
            refused += send(client, path, json.dumps(good | {field: value}).encode()).status_code >= 400
        send(client, path, json.dumps({name: one for name, one in good.items() if name != field}).encode())
    assert refused > len(good) * len(BAD) // 3
    assert send(client, path, json.dumps(good | ({"model": "topic"} if client is servers[1] else {})).encode())


def test_bodies_and_headers_that_are_none(servers):
    client = servers[0]
    for path in [*BODIES, "/v1/models", "/metrics", "/nowhere", "/"]:
        for data in RAW:
            send(client, path, data)
    for headers in ({"Content-Length": "-1"}, {"Content-Length": "9" * 40}, {"Content-Encoding": "gzip"}):
        send(client, "/v1/completions", b"{}", **headers)
    for kind in (
        "text/plain",
        "multipart/form-data",
        "application/x-www-form-urlencoded",
        "application/json; charset=x",
    ):
        send(client, "/v1/completions", json.dumps(BODIES["/v1/completions"]).encode(), **{"Content-Type": kind})
    for key in ("Bearer", "Bearer \xff", "Basic eDp4", "Bearer " + "x" * 4000, ""):
        assert client.get("/v1/models", headers={"Authorization": key.encode("latin-1")}).status_code == 200
    for name in ("..%2f..%2fetc%2fpasswd", "%00", "%ff", "x" * 3000, "a%0d%0aX:%20y", "."):
        assert client.get(f"/v1/models/{name}").status_code in (200, 404)


def test_malice_beside_good_requests_changes_no_answer(servers):
    client = servers[0]
    body = {"model": "b", "prompt": "steady", "max_tokens": 8, "temperature": 0}
    expected = client.post("/v1/completions", json=body).json()["choices"]
    found = []

    def good():
        found.extend(client.post("/v1/completions", json=body).json()["choices"] == expected for _ in range(5))

    threads = [threading.Thread(target=good) for _ in range(2)]
    for thread in threads:
        thread.start()
    for value in BAD:
        send(client, "/v1/completions", json.dumps(GENERATION | {"prompt": value}).encode())
    for thread in threads:
        thread.join()
    assert found == [True] * 10
