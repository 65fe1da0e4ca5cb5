"""Is the content of a ``dts_config.json`` what the rest of the package reads?  An adapter may come from anywhere."""

from collections.abc import Callable, Iterator
from pathlib import PureWindowsPath

import torch

from dts.adapter.entries import KINDS

Test = Callable[[object], bool]


def plain_name(name) -> bool:
    """Is it the name of a file in the folder itself, on every system, so that no copy of it lands elsewhere?"""
    if not isinstance(name, str) or name in ("", ".", "..") or "\0" in name:
        return False
    return PureWindowsPath(name).name == name  # which knows both separators and drives


def text(value) -> bool:
    return isinstance(value, str)


def number(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def count(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def flag(value) -> bool:
    return isinstance(value, bool)


def section(value) -> bool:
    return isinstance(value, dict)


def dtype(value) -> bool:
    return isinstance(value, str) and isinstance(getattr(torch, value, None), torch.dtype)


def or_none(test: Test) -> Test:
    return lambda value: value is None or test(value)


def list_of(test: Test) -> Test:
    return lambda value: isinstance(value, list) and all(map(test, value))


def one_of(*choices: str) -> Test:
    return lambda value: isinstance(value, str) and value in choices


def by_name(test: Test) -> Test:
    return lambda value: isinstance(value, dict) and all(map(test, value.values()))


CONFIG = {
    "method": text, "kind": one_of("task", "difference"), "squared_error": or_none(number), "bytes": count,
    "amr": number, "created": section, "dropped": by_name(number), "files": section, "model_config": or_none(section),
    "tensors": section, "task": section, "base": section, "finetuned": section,
}  # fmt: skip
SECTIONS = {
    "task": {"name": text, "class_names": or_none(list_of(text)), "description": or_none(text)},
    "base": {"name": text, "revision": or_none(text), "dtype": dtype, "bytes_per_element": count, "parameters": count,
             "fingerprint": text},
    "finetuned": {"name": text, "dtype": dtype, "base_prefix": text, "prefix": text, "renamed": by_name(text),
                  "base_only": list_of(text), "dtypes": by_name(dtype)},
}  # fmt: skip
ROW = {"shape": list_of(count), "kind": text, "sha256": text}
OPTIONAL = {  # of a row
    "bytes": count, "norm": number, "squared_error": or_none(number), "base": or_none(text), "tied_to": text,
    "scale": or_none(number), "dtype": dtype, "task_only": flag,
}  # fmt: skip


def problems(config: dict) -> list[str]:
    """A line for all that is absent or of the wrong kind; empty if all is well."""
    wrong = list(_wrong("", config, CONFIG))
    for key, tests in SECTIONS.items():
        if isinstance(config.get(key), dict):
            wrong += _wrong(f"{key}.", config[key], tests)
    if isinstance(config.get("files"), dict):
        wrong += _wrong_files(config["files"])
    if isinstance(config.get("tensors"), dict):
        for name, row in config["tensors"].items():
            wrong += _wrong_row(name, row)
    return wrong


def _wrong(prefix: str, values: dict, tests: dict[str, Test]) -> Iterator[str]:
    absent = [f"{prefix}{key}" for key in tests if key not in values]
    if absent:
        yield f"it has no {', '.join(absent)}"
    for key, test in tests.items():
        if key in values and not test(values[key]):
            yield f"{prefix}{key} is {_shown(values[key])}"


def _wrong_files(files: dict) -> Iterator[str]:
    for name, size in files.items():
        if not plain_name(name):
            yield f"files: {name!r} is not the name of a file in the adapter's folder"
        if not count(size):
            yield f"files: the size of {name!r} is {_shown(size)}"


def _wrong_row(name: str, row) -> Iterator[str]:
    if not isinstance(row, dict):
        yield f"tensors: {name} is {_shown(row)}"
        return
    yield from _wrong(f"{name}: ", row, ROW | {key: test for key, test in OPTIONAL.items() if key in row})
    if text(row.get("kind")) and row["kind"] not in KINDS:
        yield f"{name} is stored as {row['kind']!r}, which this version does not know"


def _shown(value) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."
