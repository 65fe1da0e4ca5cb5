"""JSON objects of model folders: bounded in size and depth, so that no file can exhaust memory or the stack."""

import json
from pathlib import Path

from dts.checkpoint.errors import AGAIN, CheckpointError

LARGEST = 64 * 2**20  # bytes; the index of a model of a million tensors has about 100 per tensor
DEEPEST = 64  # levels of lists and objects; configs of multimodal models have 5


def damaged(path: Path, why: str) -> CheckpointError:
    """Of a file that its writer cannot have meant."""
    return CheckpointError(f"{path} is damaged: {why}.  {AGAIN}")


def read_json(path: Path):
    """The file's content; raises CheckpointError for what is no JSON, too large, too deep, or has NaN in it."""
    size = path.stat().st_size
    if size > LARGEST:
        raise damaged(path, f"{size:,} bytes, and no such file has more than {LARGEST:,}")
    try:
        content = json.loads(path.read_text("utf-8"), parse_constant=_constant)
    except RecursionError:
        raise damaged(path, f"lists or objects are nested deeper than {DEEPEST} levels") from None
    except ValueError as error:
        raise damaged(path, str(error)) from error
    level, depth = [content], 0
    while level:
        depth += 1
        if depth > DEEPEST:
            raise damaged(path, f"lists or objects are nested deeper than {DEEPEST} levels")
        level = [inner for value in level for inner in _values(value)]
    return content


def json_object(path: Path) -> dict:
    content = read_json(path)
    if not isinstance(content, dict):
        raise damaged(path, f"it holds a {type(content).__name__}, not an object")
    return content


def read_config(path: Path) -> dict:
    """A ``config.json``, whose fields that are used here have the types they should have."""
    config = json_object(path)
    wrong = [
        f"{key} is {config[key]!r:.80}, not {what}"
        for key, (what, fits) in FIELDS.items()
        if config.get(key) is not None and not fits(config[key])
    ]
    if wrong:
        raise damaged(path, "; ".join(wrong))
    return config


def _is_class_list(value) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) and item for item in value)


def _is_labels(value) -> bool:
    return isinstance(value, dict) and all(
        key.removeprefix("-").isdecimal() and isinstance(label, str | int | float) for key, label in value.items()
    )


FIELDS = {  # of config.json
    "architectures": ("a list of class names", _is_class_list),
    "model_type": ("a name", lambda value: isinstance(value, str)),
    "id2label": ("an object of numbers and labels", _is_labels),
    "tie_word_embeddings": ("true or false", lambda value: isinstance(value, bool)),
    "auto_map": ("an object", lambda value: isinstance(value, dict)),
    "quantization_config": ("an object", lambda value: isinstance(value, dict)),
}


def _values(value) -> list:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [item for item in inner if isinstance(item, dict | list)]


def _constant(text: str) -> float:
    if text == "NaN":
        raise ValueError("it has NaN, which is no number")
    return float(text.replace("Infinity", "inf"))  # of time limits in Mamba's configs
