"""The commands of docs/deploy.md on vLLM, in an empty folder but for the examples."""

import json
import shlex
import subprocess
import sys
import time

import pytest

from tests.docs.pages import ROOT, blocks
from tests.vllm.conftest import START, checked, end, environment, free_port, on_ray

pytestmark = pytest.mark.vllm
SMALL = ("--max-model-len", "128", "--max-num-seqs", "8", "--enforce-eager")


def lines() -> list[str]:
    """Of the section on vLLM, and before them those that make its models."""
    page = [block.text for block in blocks(ROOT / "docs" / "deploy.md") if block.language == "bash"]
    page = [line for text in page if text not in on_ray() for line in text.splitlines()]
    first = next(index for index, line in enumerate(page) if "VLLM" in line)
    made = [line for line in page[:first] if line.startswith(("python examples/chat.py", "dts compress chat/"))]
    return made + [line for line in page[first:] if "api_server" in line or '"prompt": "Once"' in line]


def test_the_page_does_what_it_says(tmp_path):
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    commands = lines()
    assert sum("api_server" in line for line in commands) == 3 and sum("curl" in line for line in commands) == 2
    assert len(commands) == 7
    port, server, log, answers = free_port(), None, tmp_path / "log", []
    try:
        for line in commands:
            words = shlex.split(line.replace("8000", str(port)))
            variables = dict(word.split("=", 1) for word in words if word.startswith(("DTS_", "VLLM_")))
            words = [word for word in words if word not in {f"{key}={value}" for key, value in variables.items()}]
            if "api_server" in line:
                if server is not None:
                    end(server)
                with log.open("w") as out:
                    words = [sys.executable, *words[1:], *SMALL]
                    server = subprocess.Popen(
                        words,
                        env=environment(**variables),
                        cwd=tmp_path,
                        stdout=out,
                        stderr=out,
                        start_new_session=True,
                    )
                until, ready = time.monotonic() + START, ["curl", "-sf", f"http://127.0.0.1:{port}/v1/models"]
                while subprocess.run(ready, capture_output=True).returncode:
                    if server.poll() is not None or time.monotonic() > until:
                        checked(server.poll() or -1, log)
                    time.sleep(0.5)
            else:
                own = {"dts": [sys.executable, "-m", "dts"], "python": [sys.executable]}
                words = [*own.get(words[0], words[:1]), *words[1:]]
                done = subprocess.run(words, env=environment(), cwd=tmp_path, capture_output=True, text=True)
                assert done.returncode == 0, done.stderr
                answers += [json.loads(done.stdout)] if words[0] == "curl" else []
        models_now = subprocess.run(ready, capture_output=True, text=True).stdout
    finally:
        if server is not None:
            end(server)
    said = {one["model"]: one["choices"][0]["text"] for one in answers}
    assert said == {"rhyme": " a mouse", "prose": " there w"}
    assert json.loads(models_now)["data"][0]["id"] == "rhyme"
