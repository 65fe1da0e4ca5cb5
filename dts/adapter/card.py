"""The model card of an adapter."""

import json
import re

from dts import __version__
from dts.codec.methods import method_of


def card(config: dict) -> str:
    """README.md from the content of ``dts_config.json``."""
    base, task = config["base"], config["task"]
    kinds: dict[str, int] = {}
    for row in config["tensors"].values():
        kind = "task only" if row.get("task_only") else row["kind"]
        kinds[kind] = kinds.get(kind, 0) + 1
    rate = 4 * config["amr"] / config["base"]["bytes_per_element"]
    lines = [
        "---",
        "tags: [dts, adapter]",
        f"base_model: {yaml(base['name'])}",
        "---",
        f"# {markdown(task['name'])}",
        "",
        markdown(task["description"] or f"A full fine-tune of {base['name']}, stored as its difference."),
        "",
        f"- classes: {markdown(', '.join(task['class_names'])) if task['class_names'] else 'not named'}",
        f"- base: {markdown(base['name'])}, {base['parameters']:,} parameters, {base['dtype']}, "
        f"fingerprint `{markdown(base['fingerprint'])}`",
        f"- {config['bytes']:,} bytes: {config['amr']:.3%} of the base in fp32, {rate:.3%} of it in {base['dtype']}",
        f"- method: {config['method']}; squared error of the whole difference: {show(config['squared_error'])}"
        + note(config["method"]),
        f"- tensors: {', '.join(f'{count} {kind}' for kind, count in kinds.items()) or 'none'}; "
        f"{len(config['dropped'])} left at the base",
        f"- made by dts {__version__}",
        "",
        "```python",
        "import dts",
        "",
        f'adapters = {{{python(task["name"])}: "path/to/this/folder"}}',
        f"model = dts.DTSModel.from_pretrained({python(base['name'])}, adapters=adapters)",
        f"model.set_task({python(task['name'])})",
        "```",
    ]
    return "\n".join(lines) + "\n"


def python(text: str) -> str:
    """A string literal."""
    return f'"{text}"' if re.fullmatch(r"[\w ./:+-]*", text, re.ASCII) else repr(text)


def yaml(text: str) -> str:
    """A scalar, quoted unless it is plain letters: a JSON string is one, but for line ends JSON does not know."""
    if re.fullmatch(r"[A-Za-z][\w./-]*", text, re.ASCII) and text.lower() not in (
        "true",
        "false",
        "yes",
        "no",
        "on",
        "off",
        "null",
        "y",
        "n",
    ):
        return text
    quoted = json.dumps(text, ensure_ascii=False)
    return re.sub("[\x7f-\x9f\u2028\u2029\ufeff]", lambda found: f"\\u{ord(found[0]):04x}", quoted)


def markdown(text: str) -> str:
    """Text in one line that is shown as it is."""
    text = re.sub(r"([\\`*\[\]<>#|&~])", r"\\\1", " ".join(text.split()))
    return re.sub(r"(?<!\w)_|_(?!\w)", r"\\_", text)


def note(method: str) -> str:
    """What explains an adapter's squared error."""
    return method_of(method).note


def show(error: float | None) -> str:
    return "not known" if error is None else f"{error:.4f}"
