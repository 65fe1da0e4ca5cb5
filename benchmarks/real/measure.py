"""One score: the base, the fine-tune and adapters of each size answer the same questions, a model in memory at a time.

Compressing streams: tensors are read from disk one at a time.  Answers, adapters and figures lie in the folder of the
run, and what is there is not made again.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import dts
from benchmarks.real.access import place_of
from benchmarks.real.generate import TOKENS, Late, answered, greedy
from benchmarks.real.grade import graded
from benchmarks.real.prompts import asked
from benchmarks.real.questions import questions
from benchmarks.real.scores import Score
from dts.files import write_text

BASE, FINETUNE = "base", "fine-tune"


@dataclass(frozen=True)
class Setting:
    """out: the folder of the run;  mirror: of copies, by hub id;  sizes: shares of fp32;  limit: rows, at most;
    isolated: there is no network that programs of answers could reach."""

    out: Path
    sizes: list[float]
    mirror: Path | None = None
    limit: int | None = None
    batch: int = 16
    device: str = "cpu"
    dtype: torch.dtype = torch.float16
    method: str = "auto"
    tokens: int | None = None
    isolated: bool = False


def measured(score: Score, setting: Setting, tell: Callable[[str], None] = print) -> list[dict]:
    """A row for the base, the fine-tune and each size: {"score", "what", "value" in % or None, "rows", "bytes"}."""
    path = setting.out / "scores" / f"{score.name}.json"
    done = {row["what"]: row for row in json.loads(path.read_text())} if path.is_file() else {}
    wanted = [BASE, FINETUNE, *(f"{100 * size:g} %" for size in setting.sizes)]
    key = {"limit": setting.limit, "tokens": setting.tokens, "method": setting.method}
    rows = questions(score.benchmark, setting.mirror, setting.limit)
    for what in wanted:
        known = done.get(what)
        if known is not None and known["value"] is not None and {name: known[name] for name in key} == key:
            continue
        folder = None if what in (BASE, FINETUNE) else _adapter(score, setting, what)
        tokenizer = AutoTokenizer.from_pretrained(place_of(score.model.finetuned, setting.mirror))
        prompts = [asked(score.benchmark, score.model.prompt, row, tokenizer) for row in rows]
        name = f"{score.name}-{what.removesuffix(' %').replace(' ', '-')}"
        file = setting.out / "answers" / f"{name}-{setting.tokens or 'all'}-{setting.method}.jsonl"
        with _generator(score, setting, what, folder, tokenizer) as generate:
            given = answered(prompts, file, generate, setting.batch, tell)
        value = graded(score.benchmark, rows, given, setting.isolated, setting.out / "answers", name)
        size = None if folder is None else dts.Adapter.load(folder, verify=False).nbytes
        done[what] = {"score": score.name, "what": what, "value": value, "rows": len(rows), "bytes": size, **key}
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(list(done.values()), indent=1) + "\n")
        tell(f"{score.name}, {what}: " + ("not graded" if value is None else f"{value:.2f} % ({score.metric})"))
    return [done[what] for what in wanted]


def _adapter(score: Score, setting: Setting, what: str) -> Path:
    """The folder of the adapter of this size, made or found.  Scores of one model share it."""
    model, size = score.model, float(what.removesuffix(" %")) / 100
    folder = setting.out / "adapters" / f"{model.name}-{setting.method}-{what.removesuffix(' %')}"
    if not (folder / "dts_config.json").is_file():
        base, finetuned = (place_of(name, setting.mirror) for name in (model.base, model.finetuned))
        device = setting.device if setting.device.startswith("cuda") else None
        dts.compress(
            base, finetuned, out=folder, budget=size, method=setting.method, name=model.name, device=device, resume=True
        )
    return folder


@contextmanager
def _generator(
    score: Score, setting: Setting, what: str, adapter: Path | None, tokenizer: Any
) -> Iterator[Callable[[list[str]], list[str]]]:
    """What answers prompts: the model is loaded when the first one comes, and gone behind the block."""
    base, finetuned = (place_of(name, setting.mirror) for name in (score.model.base, score.model.finetuned))
    where: dict[str, Any] = {"dtype": setting.dtype}
    if setting.device != "cpu":
        where["device_map"] = setting.device
    tokens = setting.tokens or TOKENS[score.benchmark]

    def load() -> Callable[[list[str]], list[str]]:
        if adapter is None:
            model = AutoModelForCausalLM.from_pretrained(base if what == BASE else finetuned, **where).eval()
            return greedy(model, tokenizer, tokens)
        model = dts.DTSModel.from_pretrained(base, adapters={"task": adapter}, **where).eval()
        return greedy(model, tokenizer, tokens, "task")

    generate = Late(load)
    try:
        yield generate
    finally:
        generate.clear()
        gc.collect()
        if setting.device.startswith("cuda"):
            torch.cuda.empty_cache()
