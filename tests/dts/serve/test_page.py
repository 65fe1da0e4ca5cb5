"""The page at /: whole in one file, its requests answered, and used in headless Chromium where there is one.

Chromium is playwright's own, or DTS_CHROMIUM names one (with more arguments for it, separated by spaces).
"""

import base64
import hashlib
import os
import re
import shutil
import subprocess
import threading
import time

import pytest

TestClient = pytest.importorskip("tests.dts.serve.client").TestClient

import uvicorn  # noqa: E402

from dts.serve.http.app import application  # noqa: E402
from dts.serve.http.page import FILE  # noqa: E402
from dts.serve.metrics import Metrics  # noqa: E402
from dts.serve.options import Options  # noqa: E402
from dts.serve.start import serve  # noqa: E402
from tests.dts.serve.asking import alone  # noqa: E402

KEY = "a key of callers 123"
PAGE = FILE.read_text("utf-8")
SCRIPT = re.search(r"<script>(.*?)</script>", PAGE, re.DOTALL)[1]


def started(place, keys=()):
    metrics = Metrics()
    served = serve(Options(str(place.base), place.adapters, device="cpu"), metrics)
    served.engine.start()
    return served, application(served, metrics, keys)


def test_it_needs_nothing_from_elsewhere_and_may_ask_for_nothing_else(decoder):
    served, app = started(decoder, [KEY])
    client = TestClient(app)
    found = client.get("/")  # without a key: it asks for one
    assert found.status_code == 200 and found.headers["content-type"].startswith("text/html") and found.text == PAGE
    for wrong in (
        "http://",
        "https://",
        "//cdn",
        "@import",
        "url(",
        " src=",
        "innerHTML",
        "eval(",
        " style=",
        "onclick",
    ):
        assert wrong not in PAGE
    policy = found.headers["content-security-policy"]
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    assert "default-src 'none'" in policy and f"script-src 'sha256-{digest}'" in policy
    ids = re.findall(r' id="([^"]+)"', PAGE)
    assert len(ids) == len(set(ids)) and set(re.findall(r'at\("([^"]+)"\)', SCRIPT)) <= set(ids)
    assert client.get("/v1/models").status_code == 401
    assert served.engine.drain(60)


def test_who_hears_or_only_types_can_use_it():
    assert '<html lang="en">' in PAGE and 'role="status"' in PAGE and ":focus-visible" in PAGE
    named = set(re.findall(r'<label for="([^"]+)"', PAGE))
    for tag in re.findall(r"<(?:input|textarea)[^>]*>", PAGE):
        name = re.search(r'id="([^"]+)"', tag)[1]
        inside = re.search(rf"<label[^>]*>(?:(?!</label>).)*{re.escape(tag)}", PAGE, re.DOTALL)
        assert name in named or inside, f"{tag} has no label"
    assert 'setAttribute("aria-label"' in SCRIPT and "aria-busy" in SCRIPT  # of sliders; of answers as they come


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node")
def test_its_script_is_one(tmp_path):
    (tmp_path / "page.mjs").write_text(SCRIPT)
    done = subprocess.run(["node", "--check", str(tmp_path / "page.mjs")], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_what_it_asks_for_is_there(decoder, encoder):
    asked = set(re.findall(r'fetch\("([^"]+)"', SCRIPT)) | set(re.findall(r'\? "(v1/[^"]+)" : "(v1/[^"]+)"', SCRIPT)[0])
    assert asked == {"v1/models", "metrics", "classify", "v1/completions", "v1/chat/completions"}
    served, app = started(decoder)
    client = TestClient(app)
    models = client.get("/v1/models").json()["data"]
    assert models[0]["generates"] is True and models[0]["parent"] is None
    assert all(one["bytes"] > 0 and one["loaded"] is False for one in models[1:])
    body = {"max_tokens": 4, "temperature": 0, "stream": True, "stream_options": {"include_usage": True}}
    for model in ("a", "base", "auto", "a:0.7,b:0.3"):
        text = client.post("/v1/completions", json=body | {"model": model, "prompt": "hi"}).text
        assert '"completion_tokens"' in text and '"error"' not in text
    chat = body | {"model": "a", "messages": [{"role": "user", "content": "hi"}]}
    assert '"completion_tokens"' in client.post("/v1/chat/completions", json=chat).text
    figures = client.get("/metrics").text
    for name in re.findall(r"dts:\w+", SCRIPT):
        assert re.search(rf"^{name}(?:{{[^}}]*}})? (\S+)$", figures, re.MULTILINE), name
    assert served.engine.drain(60)
    served, app = started(encoder)
    assert TestClient(app).get("/v1/models").json()["data"][0]["generates"] is False
    assert served.engine.drain(60)


@pytest.fixture
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    path, *more = os.environ.get("DTS_CHROMIUM", "").split() or [None]
    with playwright.sync_playwright() as started_one:
        try:
            made = started_one.chromium.launch(executable_path=path, args=["--no-sandbox", *more])
        except playwright.Error as error:
            if path:
                raise
            pytest.skip(f"playwright has no Chromium: {str(error).splitlines()[0]}")
        yield made
        made.close()


def until(page, name, words):
    """Waits for an element's text.  Not by wait_for_function: the page's policy forbids its eval, as it should."""
    end = time.monotonic() + 60
    while not re.search(words, found := page.text_content(f"#{name}")):
        assert time.monotonic() < end, found
        time.sleep(0.05)


def test_in_chromium_answers_come_side_by_side(decoder, browser):
    served, app = started(decoder, [KEY])
    server = uvicorn.Server(uvicorn.Config(app, "127.0.0.1", 0, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        page = browser.new_page()
        asked, errors = [], []
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(f"http://127.0.0.1:{port}/")
        until(page, "said", "no valid key")
        page.fill("#key", KEY)
        page.dispatch_event("#key", "change")
        page.wait_for_selector("input[value=a]")
        for name in ("a", "b", "base"):
            page.check(f"input[value={name}]")
        for name, weight in (("a", "0.7"), ("b", "0.3")):
            page.evaluate(
                "([name, weight]) => { const one = document.querySelector(`input[data-task=${name}]`);"
                "one.value = weight; one.dispatchEvent(new Event('input')); }",
                [name, weight],
            )
        until(page, "live", "0 tokens/s")
        page.evaluate(
            "() => { window.seen = []; const live = document.getElementById('live');"
            "new MutationObserver(() => window.seen.push(live.textContent)).observe(live, {childList: true}); }"
        )
        page.fill("#prompt", "hello")
        page.fill("#tokens", "12")
        page.press("#tokens", "Enter")
        until(page, "said", "4 of 4 answered")
        shown = page.eval_on_selector_all(
            "article", "all => all.map(one => [one.dataset.model, one.querySelector('pre').textContent])"
        )
        assert [name for name, _ in shown] == ["base", "a", "b", "a:0.7,b:0.3"]
        for name, text in shown:
            assert text == alone(decoder, served, name, "hello", 12)
        assert "tokens, first after" in page.text_content("article p >> nth=0")
        end = time.monotonic() + 30
        while not any(re.search(r"[1-9]\d* tokens/s, \d+ rows run", live) for live in page.evaluate("window.seen")):
            assert time.monotonic() < end
            time.sleep(0.1)
        until(page, "memory", "^2 of 3 adapters in memory")
        assert all(url.startswith(f"http://127.0.0.1:{port}/") for url in asked) and not errors
    finally:
        server.should_exit = True
        thread.join(60)
    assert served.engine.drain(60)
