"""Is the content of a ``dts_config.json`` what the rest of the package reads?  An adapter may come from anywhere."""

from collections.abc import Iterator, Mapping

import dts.adapter.modules as modules
from dts.adapter.carried import carried, plain_name
from dts.adapter.entries import ENTRY_KINDS
from dts.adapter.text import dtype_name
from dts.checkpoint.safetensors_file import NAMES
from dts.codec.methods import is_stored
from dts.codec.parts import KINDS
from dts.values import (
    Test,
    by_name,
    count,
    digest,
    error,
    exactly,
    flag,
    line,
    list_of,
    one_of,
    or_none,
    positive,
    real,
    section,
    shape,
    short_digest,
    shown,
    size,
    text,
    words,
)
from dts_kernels.rounded import BITS

DTYPES = {dtype_name(dtype): dtype for dtype in NAMES}


def step(value) -> bool:
    return real(value) and value > 0


def dtype(value) -> bool:
    return isinstance(value, str) and value in DTYPES


def floating(value) -> bool:
    return dtype(value) and DTYPES[value].is_floating_point


def expert(value) -> bool:
    """[fragment of the first kind of parts, squared error, norm, fragments of the other kinds]; None where a kind has
    none, and nothing after the last that has some."""
    first, *others = (or_none(kind.fits) for kind in KINDS.values())
    tests = [first, or_none(error), size, *others]
    if not isinstance(value, list) or not 3 <= len(value) <= len(tests) or len(value) > 3 and value[-1] is None:
        return False
    return all(test(inner) for test, inner in zip(tests, value))


def labels(value) -> bool:
    """id2label: a number's digits -> a label."""
    return isinstance(value, dict) and all(
        key.lstrip("-").isdecimal() and len(key) < 20 and words(label) for key, label in value.items()
    )


FILE = exactly(bytes=count, sha256=digest)
CONFIG: dict[str, Test] = {
    "format_version": positive,
    "method": lambda value: text(value) and is_stored(value),
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
SECTIONS: dict[str, dict[str, Test]] = {
    "task": {"name": line, "class_names": or_none(list_of(words)), "description": or_none(words)},
    "base": {
        "name": line,
        "revision": or_none(words),
        "dtype": floating,
        "bytes_per_element": lambda value: count(value) and value in range(1, 17),
        "parameters": count,
        "fingerprint": line,
    },
    "finetuned": {
        "name": line,
        "dtype": floating,
        "base_prefix": words,
        "prefix": words,
        "renamed": by_name(line),
        "base_only": lambda value: list_of(line)(value) and len(set(value)) == len(value),
        "dtypes": by_name(dtype),
    },
}
OPTIONAL: dict[str, dict[str, Test]] = {"base": {"quantised": line}}
MODEL_CONFIG: dict[str, Test] = {  # what is read of it
    "architectures": or_none(list_of(words)),
    "id2label": or_none(labels),
    "label2id": or_none(section),
    "tie_word_embeddings": or_none(flag),
}
ROW: dict[str, Test] = {"shape": shape, "kind": one_of(*ENTRY_KINDS)}
ROUNDED: dict[str, Test] = {"squared_error": or_none(error), "bits": lambda value: count(value) and value in BITS}
OF_BASE: dict[str, Test] = {"norm": size, "base": or_none(line)}
OWN: dict[str, Test] = {"task_only": lambda value: value is True}


def rows(recorded: Test = short_digest) -> dict[str, tuple[dict[str, Test], dict[str, Test]]]:
    """kind of row -> (what such a row has, what it may have); fragments of parts are those of the kinds there are.

    recorded: of a digest.
    """
    row = ROW | {"sha256": recorded}
    stored = row | {"bytes": count}
    fragments = {kind.key: kind.fits for kind in KINDS.values()}
    factorised = stored | OF_BASE | {"squared_error": or_none(error)}
    return {
        "tied": (row | {"tied_to": line}, {}),
        "factors": (factorised, fragments | {"dtype": floating}),
        "experts": (factorised | {"experts": list_of(or_none(expert))}, {"dtype": floating}),
        "delta": (stored | OF_BASE, ROUNDED | {"scale": step, "dtype": floating}),
        "exact": (stored | {"result": digest, "changed": count}, OF_BASE | OWN | {"dtype": dtype}),
        "value": (stored, OF_BASE | ROUNDED | OWN | {"dtype": dtype}),
    }


def problems(config: dict) -> list[str]:
    """A line for all that is absent, of the wrong kind, out of range or not known; empty if all is well."""
    version = config.get("format_version")
    later: dict[str, Test] = {} if version in (1, 2, 3) else {"sha256": digest}
    if version not in (1, 2, 3, 4):
        later["content"] = digest
    wrong = list(_wrong("", config, CONFIG | later, {"modules": modules.harmless} if later else None))
    for key, tests in SECTIONS.items():
        if isinstance(config.get(key), dict):
            wrong += _wrong(f"{key}.", config[key], tests, OPTIONAL.get(key))
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
        known = rows(digest if version in (1, 2, 3, 4) else short_digest)
        for name, row in config["tensors"].items():
            wrong += _wrong_row(name, row, known)
        wrong += _wrong_ties(config["tensors"])
    return wrong


def _fine(values: dict, tests: Mapping[str, Test], optional: Mapping[str, Test]) -> bool:
    """Whether `_wrong` has nothing to say, as of nearly every row."""
    if not tests.keys() <= values.keys():
        return False
    for key, value in values.items():
        test = tests.get(key) or optional.get(key)
        if test is None or not test(value):
            return False
    return True


def _wrong(
    prefix: str, values: dict, tests: Mapping[str, Test], optional: Mapping[str, Test] | None = None
) -> Iterator[str]:
    absent = [f"{prefix}{key}" for key in tests if key not in values]
    if absent:
        yield f"it has no {', '.join(absent)}"
    known = {**tests, **(optional or {})}
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


def _wrong_row(name: str, row, known: Mapping[str, tuple[dict[str, Test], dict[str, Test]]]) -> Iterator[str]:
    """known: as `rows` gives it."""
    if not line(name):
        yield f"tensors: {name!r} is no name"
    if not isinstance(row, dict):
        yield f"tensors: {name} is {shown(row)}"
        return
    if not text(row.get("kind")) or row["kind"] not in known:
        yield f"{name} is stored as {row.get('kind')!r:.60} (kind), which this version does not know"
        row = {key: value for key, value in row.items() if key != "kind"}
        anywhere = {key: test for pair in known.values() for tests in pair for key, test in tests.items()}
        yield from _wrong(f"{name}: ", row, {}, anywhere)
        return
    needed, optional = known[row["kind"]]
    if row["kind"] in ("value", "exact") and "task_only" not in row:
        needed = needed | OF_BASE
    if row["kind"] in ("value", "exact") and "task_only" in row:
        optional = {key: test for key, test in optional.items() if key not in OF_BASE}
    if not _fine(row, needed, optional):
        yield from _wrong(f"{name}: ", row, needed, optional)
    if row["kind"] in ("delta", "value") and ("scale" in row) + ("bits" in row) != ("squared_error" in row):
        yield f"{name}: a scale or bits and a squared_error belong together"


def _wrong_ties(rows: dict) -> Iterator[str]:
    for name, row in rows.items():
        if not isinstance(row, dict) or row.get("kind") != "tied":
            continue
        owner = rows.get(row.get("tied_to")) if text(row.get("tied_to")) else None
        if row.get("tied_to") == name or isinstance(owner, dict) and owner.get("kind") == "tied":
            yield f"{name} is tied to {row['tied_to']!r:.60}, which holds no tensor of its own"
        elif isinstance(owner, dict) and owner.get("shape") != row.get("shape"):
            yield f"{name} is tied to {row['tied_to']!r:.60}, which has another shape"
