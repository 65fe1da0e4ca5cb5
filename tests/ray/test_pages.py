"""The commands of docs/deploy.md on Ray, in an empty folder but for the examples."""

import json
import os
import shlex
import subprocess
import sys
import time

import pytest

from tests.docs.pages import ROOT, blocks
from tests.vllm.conftest import free_port, on_ray

pytestmark = pytest.mark.ray


def lines() -> list[str]:
    text = (ROOT / "docs" / "deploy.md").read_text("utf-8")
    begin = text.index("\n## Ray\n")
    section = text[begin : text.index("\n## ", begin + 1)]
    return [
        line
        for block in blocks(ROOT / "docs" / "deploy.md")
        if block.language == "bash" and block.text in section
        if "ray start" not in block.text and block.text not in on_ray()  # needs machines, or vLLM
        for line in block.text.splitlines()
    ]


def test_the_page_does_what_it_says(joined, tmp_path):
    from ray import serve

    port, answers, serving = free_port(), [], None
    serve.start(http_options={"port": port})  # where one runs already, `serve run` takes its port
    where = {"cwd": tmp_path, "env": os.environ | {"RAY_ADDRESS": joined}}
    small = [sys.executable, str(ROOT / "examples" / "small.py"), "models"]
    assert subprocess.run(small, **where, timeout=120).returncode == 0
    try:
        for line in lines():
            words = shlex.split(line.replace("8000", str(port)))
            if words[:2] == ["serve", "run"]:
                words = [sys.executable, "-m", "ray.serve.scripts", *words[1:], "cpus=0.5"]
                with (tmp_path / "log").open("w") as log:
                    serving = subprocess.Popen(words, **where, stdout=log, stderr=log)
                ready, until = ["curl", "-sf", f"http://127.0.0.1:{port}/ready"], time.monotonic() + 300
                while subprocess.run(ready, capture_output=True).returncode:
                    assert serving.poll() is None and time.monotonic() < until, (tmp_path / "log").read_text()
                    time.sleep(0.2)
                continue
            words = [sys.executable, "-m", *words] if words[0] == "dts" else words
            done = subprocess.run(words, **where, capture_output=True, text=True, timeout=150)
            assert done.returncode == 0, done.stderr
            answers.append(done.stdout)
    finally:
        if serving is not None:
            serving.kill()
            serving.wait(20)
        serve.shutdown()
    assert "2 adapters" in answers[0] or answers[0].count("written") == 2
    assert [json.loads(one)["data"][0]["label"] for one in answers[1:3]] == ["sad", "science"]
    assert "dts:num_requests_running{" in answers[3] and len(answers) == 4
