"""Answers of one model to all rows of a benchmark, in batches, kept line by line so that an interrupted run goes on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

TOKENS = {"gsm8k": 1024, "math": 2048, "humaneval": 2048, "mbpp": 1024, "ifeval": 1280, "alpacaeval": 2048}


def answered(
    prompts: list[str], path: Path, generate: Callable[[list[str]], list[str]], batch: int, told: Callable[[str], None]
) -> list[str]:
    """The answer to each prompt, made by ``generate`` or found in the file of an earlier run.

    What the file holds of other prompts is made anew: each line has a digest of its prompt.
    """
    known: dict[str, str] = {}
    if path.is_file():
        for line in path.read_text("utf-8").split("\n"):
            if line.endswith("}"):  # the last one may be cut off
                row = json.loads(line)
                known[row["prompt"]] = row["answer"]
    names = [hashlib.sha256(prompt.encode()).hexdigest()[:16] for prompt in prompts]
    left = [i for i, name in enumerate(names) if name not in known]
    left.sort(key=lambda i: len(prompts[i]))  # so that little of a batch is padding
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as file:
        if path.stat().st_size:
            file.write("\n")  # behind a line that was cut off
        for start in range(0, len(left), batch):
            some = left[start : start + batch]
            for i, answer in zip(some, generate([prompts[i] for i in some]), strict=True):
                known[names[i]] = answer
                file.write(json.dumps({"prompt": names[i], "answer": answer}) + "\n")
            file.flush()
            told(f"{path.stem}: {len(prompts) - len(left) + start + len(some)} of {len(prompts)}")
    return [known[name] for name in names]


def greedy(model: Any, tokenizer: Any, tokens: int, task: str | None = None) -> Callable[[list[str]], list[str]]:
    """The likeliest continuation, at most ``tokens`` long.  task: of a ``DTSModel``."""
    tokenizer.padding_side = "left"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    options = {} if task is None else {"tasks": task}

    @torch.inference_mode()
    def generate(prompts: list[str]) -> list[str]:
        # a chat template brings the mark of the beginning itself
        special = not all(tokenizer.bos_token and prompt.startswith(tokenizer.bos_token) for prompt in prompts)
        inputs = tokenizer(prompts, return_tensors="pt", padding=True, add_special_tokens=special).to(model.device)
        inputs.pop("token_type_ids", None)
        out = model.generate(
            **inputs, do_sample=False, max_new_tokens=tokens, pad_token_id=tokenizer.pad_token_id, **options
        )
        return tokenizer.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)

    return generate


class Late:
    """Answers prompts by what ``load`` gives, which is called when the first ones come."""

    def __init__(self, load: Callable[[], Callable[[list[str]], list[str]]]):
        self.load = load
        self.generate: Callable[[list[str]], list[str]] | None = None

    def __call__(self, prompts: list[str]) -> list[str]:
        if self.generate is None:
            self.generate = self.load()
        return self.generate(prompts)

    def clear(self) -> None:
        """Lets go what was loaded."""
        self.generate = None
