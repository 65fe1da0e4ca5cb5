"""Is an answer right?  One number a row, so that a benchmark's figure is their mean, in %."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.real import answers
from benchmarks.real.questions import Row
from benchmarks.real.sandbox import passes


def humaneval(row: Row, answer: str, isolated: bool) -> float:
    code = answers.program(answer, row["prompt"])
    return float(passes(code, f"{row['test']}\ncheck({row['entry_point']})", isolated=isolated))


def mbpp(row: Row, answer: str, isolated: bool) -> float:
    imports = "\n".join(row.get("test_imports") or row.get("test_setup_code", "").splitlines())
    return float(passes(answers.program(answer), "\n".join([imports, *row["test_list"]]), isolated=isolated))


def ifeval(row: Row, answer: str, isolated: bool) -> float:
    """Are all instructions of a prompt followed, in a loose reading of the answer?  By lm-evaluation-harness."""
    from lm_eval.tasks.ifeval.utils import process_results

    return float(process_results(row, [answer])["prompt_level_loose_acc"])


GRADERS: dict[str, Callable[[Row, str, bool], float]] = {
    "gsm8k": lambda row, answer, _: float(answers.same_number(answer, row["answer"])),
    "math": lambda row, answer, _: float(answers.same_expression(answer, row["solution"])),
    "humaneval": humaneval,
    "mbpp": mbpp,
    "ifeval": ifeval,
}


def graded(benchmark: str, rows: list[Row], given: list[str], isolated: bool, folder: Path, name: str) -> float | None:
    """The figure in %; None for what a judge elsewhere has to grade, whose input is then in the folder."""
    if benchmark == "alpacaeval":
        return _alpaca(rows, given, folder, name)
    grade = GRADERS[benchmark]
    return 100 * sum(grade(row, answer, isolated) for row, answer in zip(rows, given, strict=True)) / len(rows)


def _alpaca(rows: list[Row], given: list[str], folder: Path, name: str) -> float | None:
    """Win rate against the reference answers, by the judge of the published figures where its key is there."""
    outputs: list[dict[str, Any]] = [
        {"instruction": row["instruction"], "output": answer, "generator": name} for row, answer in zip(rows, given)
    ]
    path = folder / f"alpaca-{name}.json"
    path.write_text(json.dumps(outputs, indent=1))
    judge = "weighted_alpaca_eval_gpt-4o-2024-08-06"
    if not os.environ.get("OPENAI_API_KEY"):
        print(
            f"{name}: the judge {judge} is asked with a key, OPENAI_API_KEY, which is not set; with it the same "
            f"command goes on, or run: alpaca_eval --model_outputs {path} --annotators_config {judge}"
        )
        return None
    from alpaca_eval import evaluate

    board, _ = evaluate(
        model_outputs=outputs, annotators_config=judge, name=name, is_return_instead_of_print=True, output_path=None
    )
    return float(board.loc[name, "win_rate"])
