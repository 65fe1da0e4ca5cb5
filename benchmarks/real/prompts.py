"""How questions are put to a model, and where its answer begins."""

from __future__ import annotations

from typing import Any

TASK = "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
STYLES = {
    "steps": TASK + "### Instruction:\n{}\n\n### Response: Let's think step by step.",
    "script": TASK + "\n### Instruction:\nCreate a Python script for this problem:\n{}\n\n### Response:",
    "plain": "{}",
}


def asked(benchmark: str, style: str, row: dict[str, Any], tokenizer: Any) -> str:
    """The text that a model continues.  style: of `STYLES`, or "chat", the model's own template."""
    if benchmark == "gsm8k":
        return STYLES[style].format(row["question"])
    if benchmark == "math":
        return STYLES[style].format(row["problem"])
    if benchmark == "humaneval":
        return STYLES[style].format(row["prompt"])
    if benchmark == "mbpp":
        tests = "\n".join(row["test_list"])
        return STYLES[style].format(f"{row.get('prompt') or row['text']}\nIt has to pass these tests:\n{tests}")
    if benchmark == "ifeval":  # as published: without the template
        return row["prompt"]
    question = row["instruction"]
    if style != "chat" or not getattr(tokenizer, "chat_template", None):
        return question
    turns = [{"role": "user", "content": question}]
    return tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
