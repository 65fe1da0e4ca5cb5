"""Are answers right?  Exact match on gsm8k and pass@1 on mbpp, of the fine-tunes of `language_all`, their base, and
adapters as `dts compress` writes them.

    python -m benchmarks.quality.language_answers --limit 200 --out out/answers.json

Held-out questions are put as the documents of the training set begin; of mbpp also the imports and the head of the
function that is tested, as nothing else says its name.  Likeliest tokens, float32.  Prints how many answers are right,
and how many are the fine-tune's, letter by letter: of a model of 135 M parameters few are right.  An interrupted run
goes on.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import dts
from benchmarks.quality import language, language_tasks, smollm2
from benchmarks.quality.command import CACHE, hush, list_of, make_place
from benchmarks.quality.image_tasks import shared_data
from benchmarks.real.answers import same_number
from benchmarks.real.generate import Late, answered, greedy
from benchmarks.real.sandbox import passes
from dts.files import write_text


@dataclass(frozen=True)
class Exam:
    """rows(folder of data): the held-out questions;  opening(row): what a model continues;  right(row, continuation,
    whether no network has to be taken away);  end: where the next document begins;  tokens: of an answer, at most."""

    rows: Callable[[Path], list[dict]]
    opening: Callable[[dict], str]
    right: Callable[[dict, str, bool], bool]
    end: str
    tokens: int

    def cut(self, continuation: str) -> str:
        """The answer, without other documents behind it."""
        return re.split(self.end, continuation, maxsplit=1, flags=re.MULTILINE)[0]


def function_head(row: dict) -> str:
    """The task in words, and of its solution the imports and the head of the function that the first test calls."""
    code = row["code"].replace("\r\n", "\n")
    heads = list(re.finditer(r"^def +(\w+).*\n", code, re.MULTILINE))
    called = next((head for head in heads if re.search(rf"\b{head[1]}\b", row["test_list"][0])), heads[-1])
    imports = re.findall(r"^(?:import|from) .*\n", code, re.MULTILINE)
    return "".join([f"# {row['text']}\n", *imports, called[0]])


def passes_tests(row: dict, answer: str, isolated: bool) -> bool:
    tests = "\n".join([row["test_setup_code"].replace("\r\n", "\n"), *row["test_list"]])
    return passes(function_head(row) + answer, tests, isolated=isolated)


EXAMS = {
    "gsm8k": Exam(
        lambda folder: language_tasks.lines(folder / "gsm8k_test.jsonl.gz"),
        language_tasks.question,
        lambda row, answer, _: same_number(answer, row["answer"]),
        r"^Question:",
        256,
    ),
    "mbpp": Exam(
        lambda folder: [row for row in language_tasks.lines(folder / "mbpp.jsonl.gz") if language_tasks.is_test(row)],
        function_head,
        passes_tests,
        r"^(?!def |class |import |from |@)\S",
        192,
    ),
}


def examined(name: str, finetuned: Path, asked: argparse.Namespace) -> list[dict]:
    """{"task", "what", "right", "questions", "same" (answers that are the fine-tune's), "bytes"} of each model."""
    exam, base = EXAMS[name], smollm2.base_folder(CACHE)
    rows = exam.rows(shared_data() / "lm")
    count = min(asked.limit or len(rows), len(rows))
    rows = [rows[i * len(rows) // count] for i in range(count)]
    tokenizer, prompts, found = AutoTokenizer.from_pretrained(base), [exam.opening(row) for row in rows], []
    wanted: list[str] = []
    for what, adapter in [("fine-tune", None), ("base", None), *((f"{100 * s:g} %", s) for s in asked.sizes)]:
        folder = None if adapter is None else _adapter(base, finetuned, adapter, asked.method)
        file = f"{name if what == 'base' else finetuned.name}-{what}-{asked.method if folder else ''}"
        path = CACHE / "answers" / f"{file.replace(' %', '').strip('-')}.jsonl"
        load = partial(_generator, base if what == "base" or folder else finetuned, folder, tokenizer, exam.tokens)
        given = [exam.cut(one) for one in answered(prompts, path, Late(load), asked.batch, partial(print, flush=True))]
        wanted = wanted or given
        one = {
            "task": name,
            "what": what,
            "right": sum(exam.right(row, answer, asked.isolated) for row, answer in zip(rows, given)),
            "questions": count,
            "same": sum(answer == other for answer, other in zip(given, wanted)),
            "bytes": None if folder is None else dts.Adapter.load(folder, verify=False).nbytes,
        }
        print(f"{name}, {what}: {one['right']} of {count} right, {one['same']} as the fine-tune's", flush=True)
        found.append(one)
    return found


def _adapter(base: Path, finetuned: Path, size: float, method: str) -> Path:
    """Made, or found in the cache."""
    folder = CACHE / "adapters" / f"{finetuned.name}-{method}-{100 * size:g}"
    if not (folder / "dts_config.json").is_file():
        dts.compress(base, finetuned, out=folder, budget=size, method=method, name="task")
    return folder


def _generator(model: Path, adapter: Path | None, tokenizer, tokens: int) -> Callable[[list[str]], list[str]]:
    if adapter is None:
        return greedy(AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval(), tokenizer, tokens)
    loaded = dts.DTSModel.from_pretrained(model, adapters={"task": adapter}, dtype=torch.float32).eval()
    return greedy(loaded, tokenizer, tokens, "task")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=list_of(str), default=list(EXAMS), help="of " + ", ".join(EXAMS))
    parser.add_argument("--sizes", type=list_of(float), default=[0.0025, 0.01], help="of adapters, shares of the base")
    parser.add_argument("--method", default="auto", help="of dts compress")
    parser.add_argument("--limit", type=int, help="questions of a task, evenly over its test set; default all")
    parser.add_argument("--batch", type=int, default=50, help="questions at once")
    parser.add_argument("--isolated", action="store_true", help="this machine has no network to be cut off")
    parser.add_argument("--out", type=Path, help="file of the rows, as JSON")
    asked = parser.parse_args(arguments)
    if unknown := [name for name in asked.tasks if name not in EXAMS]:
        parser.error(f"no task {', '.join(unknown)}; there are {', '.join(EXAMS)}")
    make_place(parser, asked.out)
    hush()
    rows = []
    for task, _, folder in language.finetunes(asked.tasks, [0], every=True):
        rows += examined(task.name, folder, asked)
    if asked.out is not None:
        write_text(asked.out, json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
