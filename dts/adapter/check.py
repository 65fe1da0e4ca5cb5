"""Is the content of a ``dts_config.json`` what the rest of the package reads?  An adapter may come from anywhere."""

import math
import unicodedata
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from pathlib import PureWindowsPath

from dts.adapter import modules
from dts.adapter.entries import KINDS
from dts.adapter.tokenizer import SUFFIXES, TEXT_FILES
from dts.checkpoint.safetensors_file import NAMES
from dts_kernels.samples import STRIDES

Test = Callable[[object], bool]
DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in NAMES}
LARGEST = 1e30  # of norms, errors, scales: their squares are still numbers
MOST = 2**62  # bytes, elements
DIMENSIONS = 16


def plain_name(name) -> bool:
    """Is it the name of a file in the folder itself, on every system, so that no copy of it lands elsewhere?"""
    if not isinstance(name, str) or name in ("", ".", "..") or "\0" in name:
        return False
    return PureWindowsPath(name).name == name  # which knows both separators and drives


def carried(name) -> bool:
    """May an adapter carry a file of this name?  Tokenizer and processor files; no weights, no code."""
    return (
        plain_name(name)
        and filename(name)
        and any(fnmatchcase(name, pattern) for pattern in TEXT_FILES)
        and name.endswith(SUFFIXES)
    )


def carried_modules(value) -> bool:
    """Files of a sentence-transformers model whose classes are its own and torch's: no other code is named."""
    if not modules.plain(value):
        return False
    files = value["files"]
    rows = files.get(modules.MODULES)
    kinds = [row["type"] for row in rows if isinstance(row, dict) and "type" in row] if isinstance(rows, list) else []
    contents = [content for content in files.values() if isinstance(content, dict)]
    functions = [content["activation_function"] for content in contents if "activation_function" in content]
    return (
        all(text(kind) and kind.startswith("sentence_transformers.") for kind in kinds)
        and all(text(function) and function.startswith("torch.nn.") for function in functions)
        and not any("auto_map" in content for content in contents)
    )


def text(value) -> bool:
    return isinstance(value, str)


def words(value) -> bool:
    """Text without control characters but line ends and tabs."""
    return isinstance(value, str) and not any(
        unicodedata.category(letter) in ("Cc", "Cs") for letter in value if letter not in "\n\r\t"
    )


def filename(value) -> bool:
    """Text in one line without any control character, not empty: names of tasks, tensors, files."""
    return (
        isinstance(value, str)
        and value != ""
        and not any(unicodedata.category(letter) in ("Cc", "Cs") for letter in value)
    )


def number(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and -LARGEST <= value <= LARGEST


def size(value) -> bool:
    """A number that is not negative: a norm, a share."""
    return number(value) and value >= 0


def step(value) -> bool:
    """What torch multiplies by: a whole number may be too large for it."""
    return isinstance(value, float) and number(value) and value > 0


def error(value) -> bool:
    """A squared relative error, which float arithmetic may have left a little below 0."""
    return number(value) and value > -0.01


def count(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MOST


def positive(value) -> bool:
    return count(value) and value > 0


def flag(value) -> bool:
    return isinstance(value, bool)


def section(value) -> bool:
    return isinstance(value, dict)


def dtype(value) -> bool:
    return isinstance(value, str) and value in DTYPES


def floating(value) -> bool:
    return dtype(value) and DTYPES[value].is_floating_point


def shape(value) -> bool:
    return list_of(count)(value) and len(value) <= DIMENSIONS and math.prod(value) <= MOST


def digest(value) -> bool:
    return isinstance(value, str) and len(value) == 16 and all(letter in "0123456789abcdef" for letter in value)


def or_none(test: Test) -> Test:
    return lambda value: value is None or test(value)


def list_of(test: Test) -> Test:
    return lambda value: isinstance(value, list) and all(map(test, value))


def one_of(*choices: str) -> Test:
    return lambda value: isinstance(value, str) and value in choices


def by_name(test: Test) -> Test:
    return lambda value: isinstance(value, dict) and all(map(filename, value)) and all(map(test, value.values()))


def exactly(**tests: Test) -> Test:
    """An object with these keys and no others."""
    return lambda value: (
        isinstance(value, dict)
        and value.keys() == tests.keys()
        and all(test(value[key]) for key, test in tests.items())
    )


def parts(value) -> bool:
    """Of one matrix: what its components are."""
    one = exactly(kind=one_of("residual", "paper"), rank=count)
    return list_of(one)(value) and len({part["kind"] for part in value}) <= 1


samples = list_of(
    exactly(
        stride=lambda value: count(value) and value in STRIDES,
        seed=lambda value: count(value) and value < 1 << 32,
        scale=lambda value: isinstance(value, float) and number(value),
    )
)


def expert(value) -> bool:
    """[parts, squared error, norm] and, of a sketch, samples."""
    if not isinstance(value, list) or len(value) not in (3, 4):
        return False
    return all(test(inner) for test, inner in zip((parts, or_none(error), size, samples), value))


def labels(value) -> bool:
    """id2label: a number's digits -> a label."""
    return isinstance(value, dict) and all(
        key.lstrip("-").isdecimal() and len(key) < 20 and words(label) for key, label in value.items()
    )


FILE = exactly(bytes=count, sha256=digest)
CONFIG = {
    "format_version": positive,
    "method": one_of("residual", "paper", "sketch"),
    "kind": one_of("task", "difference"),
    "squared_error": or_none(error),
    "bytes": count,
    "amr": size,
    "created": by_name(words),
    "dropped": by_name(size),
    "files": section,
    "model_config": or_none(section),
    "tensors": section,
    "task": section,
    "base": section,
    "finetuned": section,
}
SECTIONS = {
    "task": {"name": filename, "class_names": or_none(list_of(words)), "description": or_none(words)},
    "base": {
        "name": filename,
        "revision": or_none(words),
        "dtype": floating,
        "bytes_per_element": lambda value: count(value) and value in range(1, 17),
        "parameters": count,
        "fingerprint": filename,
    },
    "finetuned": {
        "name": filename,
        "dtype": floating,
        "base_prefix": words,
        "prefix": words,
        "renamed": by_name(filename),
        "base_only": lambda value: list_of(filename)(value) and len(set(value)) == len(value),
        "dtypes": by_name(dtype),
    },
}
MODEL_CONFIG = {  # what is read of it
    "architectures": or_none(list_of(words)),
    "id2label": or_none(labels),
    "label2id": or_none(section),
    "tie_word_embeddings": or_none(flag),
}
ROW = {"shape": shape, "kind": one_of(*KINDS), "sha256": digest}
STORED = {"bytes": count} | ROW
OF_BASE = {"norm": size, "base": or_none(filename)}
ROWS = {  # kind -> (what a row has, what it may have)
    "tied": (ROW | {"tied_to": filename}, {}),
    "factors": (
        STORED | OF_BASE | {"squared_error": or_none(error)},
        {"parts": parts, "samples": samples, "dtype": floating},
    ),
    "experts": (
        STORED | OF_BASE | {"squared_error": or_none(error), "experts": list_of(or_none(expert))},
        {"dtype": floating},
    ),
    "delta": (STORED | OF_BASE, {"squared_error": or_none(error), "scale": step, "dtype": floating}),
    "value": (STORED, OF_BASE | {"task_only": lambda value: value is True, "dtype": dtype}),
}


def problems(config: dict) -> list[str]:
    """A line for all that is absent, of the wrong kind, out of range or not known; empty if all is well."""
    version = config.get("format_version")
    later = {} if version in (1, 2, 3) else {"sha256": digest}
    wrong = list(_wrong("", config, CONFIG | later, {"modules": carried_modules} if later else None))
    for key, tests in SECTIONS.items():
        if isinstance(config.get(key), dict):
            wrong += _wrong(f"{key}.", config[key], tests)
    if isinstance(config.get("model_config"), dict):
        given = config["model_config"]
        wrong += [
            f"model_config.{key} is {shown(given[key])}"
            for key, test in MODEL_CONFIG.items()
            if key in given and not test(given[key])
        ]
    if isinstance(config.get("files"), dict):
        wrong += _wrong_files(config["files"], count if version in (1, 2, 3) else FILE)
    if isinstance(config.get("tensors"), dict):
        for name, row in config["tensors"].items():
            wrong += _wrong_row(name, row)
        wrong += _wrong_ties(config["tensors"])
    return wrong


def _wrong(prefix: str, values: dict, tests: dict[str, Test], optional: dict[str, Test] | None = None) -> Iterator[str]:
    absent = [f"{prefix}{key}" for key in tests if key not in values]
    if absent:
        yield f"it has no {', '.join(absent)}"
    known = tests | (optional or {})
    for key, value in values.items():
        if key not in known:
            yield f"{prefix}{key!r:.60} is not known to this version"
        elif not known[key](value):
            yield f"{prefix}{key} is {shown(value)}"


def _wrong_files(files: dict, test: Test) -> Iterator[str]:
    for name, about in files.items():
        if not plain_name(name):
            yield f"files: {name!r} is not the name of a file in the adapter's folder"
        elif not carried(name):
            yield f"files: {name!r} is no tokenizer or processor file, and an adapter carries no others"
        if not test(about):
            yield f"files: {name!r} is {shown(about)}"


def _wrong_row(name: str, row) -> Iterator[str]:
    if not filename(name):
        yield f"tensors: {name!r} is no name"
    if not isinstance(row, dict):
        yield f"tensors: {name} is {shown(row)}"
        return
    if not text(row.get("kind")) or row["kind"] not in ROWS:
        yield f"{name} is stored as {row.get('kind')!r:.60} (kind), which this version does not know"
        row = {key: value for key, value in row.items() if key != "kind"}
        yield from _wrong(
            f"{name}: ", row, {}, {key: test for pair in ROWS.values() for part in pair for key, test in part.items()}
        )
        return
    needed, optional = ROWS[row["kind"]]
    if row["kind"] == "value" and "task_only" not in row:
        needed = needed | OF_BASE
    if row["kind"] == "value" and "task_only" in row:
        optional = {key: test for key, test in optional.items() if key not in OF_BASE}
    yield from _wrong(f"{name}: ", row, needed, optional)
    if ("scale" in row) != ("squared_error" in row) and row["kind"] == "delta":
        yield f"{name}: a scale and a squared_error belong together"


def _wrong_ties(rows: dict) -> Iterator[str]:
    for name, row in rows.items():
        if not isinstance(row, dict) or row.get("kind") != "tied":
            continue
        owner = rows.get(row.get("tied_to")) if text(row.get("tied_to")) else None
        if row.get("tied_to") == name or isinstance(owner, dict) and owner.get("kind") == "tied":
            yield f"{name} is tied to {row['tied_to']!r:.60}, which holds no tensor of its own"
        elif isinstance(owner, dict) and owner.get("shape") != row.get("shape"):
            yield f"{name} is tied to {row['tied_to']!r:.60}, which has another shape"


def shown(value) -> str:
    """A value for a message, short whatever it is."""
    if isinstance(value, (dict, list)) and len(value) > 20:
        return f"{'an object' if isinstance(value, dict) else 'a list'} of {len(value)}"
    given = f"{value!r:.200}"
    return given if len(given) <= 60 else f"{given[:57]}..."
