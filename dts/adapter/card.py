"""The model card of an adapter."""

import json
import re

from dts.adapter.code import modules_of
from dts.codec.methods import LOSSLESS, method_of

LISTED = 120  # letters of class names that are listed


def card(config: dict) -> str:
    """README.md from the content of ``dts_config.json``."""
    base, task = config["base"], config["task"]
    of_hub = base.get("revision") or "/" in base["name"]
    place = python(base["name"] if of_hub else f"path/to/{base['name']}")
    given = f", revision={python(base['revision'])}" if base.get("revision") else ""
    given += ", trust_remote_code=True" if modules_of(config.get("model_config")) else ""
    names = task["class_names"] or []
    listed = f": {', '.join(names)}" if sum(map(len, names)) <= LISTED else ""
    lines = [
        "---",
        "tags: [dts, adapter]",
        f"base_model: {yaml(base['name'])}",
        "---",
        f"# {markdown(task['name'])}",
        "",
        *([markdown(task["description"]), ""] if task["description"] else []),
        f"A full fine-tune in {config['bytes']:,} bytes, {config['amr']:.3%} of the base in fp32"
        + (f"; {len(names)} classes{markdown(listed)}" if names else "")
        + ". `dts inspect` shows the rest.",
        "",
        "```python",
        "import dts",
        "",
        f"model = dts.DTSModel.from_pretrained({place}, "
        f'adapters={{{python(task["name"])}: "path/to/this/folder"}}{given})',
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
    return "" if method == LOSSLESS.name else method_of(method).note
