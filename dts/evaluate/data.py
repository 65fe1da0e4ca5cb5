"""Examples of a file with named columns, of a text file, or of a hub data set."""

from __future__ import annotations

import csv
import json
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dts.checkpoint.errors import first
from dts.checkpoint.hub import ID
from dts.files import expanded
from dts.values import shown

PAIRS = (("sentence1", "sentence2"), ("premise", "hypothesis"), ("question1", "question2"), ("text1", "text2"))
TEXT = ("text", "sentence", "input_ids", "content", "document", "review", "question", "prompt", "input", "image")
LABEL = ("label", "labels", "class", "category", "target")
TABLES = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet", ".txt")
FORMATS = "a .csv, .tsv, .jsonl or .parquet file with named columns, or a .txt file with a text a line"
MASK, TYPES = "attention_mask", "token_type_ids"  # of token ids, in columns beside theirs
LONGEST_FIELD = 2**31 - 1  # characters; Python's own limit is 131,072


@dataclass(frozen=True)
class Examples:
    """Inputs in the file's order.

    inputs: a text, a pair of texts, token ids, a dict of these and their types, or an image's path each;  labels: as
    they were written, None where there are none;  source: the file;  columns: what was read from which;
    total: how many the source has;
    made_up: were they drawn at random?
    """

    inputs: list[Any] = field(repr=False)
    labels: list[Any] | None = field(repr=False)
    source: str
    columns: dict[str, str]
    total: int
    made_up: bool = False

    def sampled(self, limit: int | None, seed: int = 0) -> Examples:
        """At most so many, the same ones each time, in order."""
        if limit is None or limit >= len(self.inputs):
            return self
        rows = sorted(random.Random(seed).sample(range(len(self.inputs)), limit))
        labels = None if self.labels is None else [self.labels[i] for i in rows]
        return replace(self, inputs=[self.inputs[i] for i in rows], labels=labels)


def read(
    source: str, text: str | None = None, label: str | None = None, split: str | None = None, option: str = "--data"
) -> Examples:
    """The examples of a file or of a hub data set.

    text: the column of inputs, or two of pairs, "a,b";  label: that of labels;  both by their usual names otherwise.
    split: of a hub data set, "test" by default;  option: what errors call it.
    Raises ValueError, FileNotFoundError or ImportError that say what was found, what was expected and what to try.
    """
    path = expanded(source)
    if path.is_file():
        if split is not None:
            raise ValueError(f"--split {split} is of a data set on the hub, and {source} is a file: leave it out")
        rows = _rows(path)
    elif path.exists() or path.suffix.lower() in TABLES or not ID.fullmatch(source):
        what = "is a folder" if path.is_dir() else "is not there"
        raise FileNotFoundError(f"{source} {what}: {option} takes {FORMATS}, or the id of a data set on the hub")
    else:
        rows = _of_hub(source, split or "test")
    if not rows:
        raise ValueError(f"{source} has no rows: {option} takes {FORMATS}")
    columns = list({name: None for row in rows for name in row})  # a row may lack one, the first too
    if not columns:
        raise ValueError(f"{source} has no columns: {option} takes {FORMATS}")
    inputs = _chosen(source, columns, text)
    labels = _label(source, columns, label)
    needed = [*inputs, *([labels] if labels else [])]
    for number, row in enumerate(rows, 1):
        if absent := [name for name in needed if row.get(name) in (None, "")]:
            raise ValueError(f"{source}: row {number} has nothing in its column {' and '.join(absent)}: leave it out")
    return Examples(
        [_input(row, inputs, path.parent, f"{source}: row {number}") for number, row in enumerate(rows, 1)],
        [row[labels] for row in rows] if labels else None,
        source,
        {"text": ", ".join(inputs)} | ({"label": labels} if labels else {}),
        len(rows),
    )


def _rows(path: Path) -> list[dict[str, Any]]:
    kind = path.suffix.lower()
    try:
        if kind == ".csv":
            return _csv(path, ",")
        if kind == ".tsv":
            return _tsv(path)
        if kind in (".jsonl", ".ndjson", ".json"):
            return _json(path, path.read_text("utf-8-sig"))
        if kind == ".txt":
            return [{"text": line} for line in lines_of(path.read_text("utf-8-sig")) if line.strip()]
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not UTF-8 ({error.reason}, byte {error.start}): convert it, e.g. by iconv"
        ) from None
    if kind == ".parquet":
        return _parquet(path)
    raise ValueError(f"{path} ends in {kind or 'nothing'}: --data takes {FORMATS}")


def lines_of(text: str) -> list[str]:
    """Of a file that was read as text.  Other characters at which `str.splitlines` breaks (U+2028, a form feed) are
    within texts and strings of JSON."""
    return text.split("\n")


@contextmanager
def _long_fields() -> Iterator[None]:
    before = csv.field_size_limit(LONGEST_FIELD)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _csv(path: Path, delimiter: str) -> list[dict[str, Any]]:
    """Strictly: a quote that is not closed where it should be would take in the lines that follow."""
    with _long_fields(), open(path, encoding="utf-8-sig", newline="") as file:
        lines = csv.reader(file, delimiter=delimiter, strict=True)
        try:
            return _table(path, ((lines.line_num, fields) for fields in lines))
        except csv.Error as error:
            raise ValueError(
                f"{path}, line {lines.line_num}: {error}: close the quotes of a text that begins with one, and write "
                'those within it twice, as in "a ""good"" one"'
            ) from None


def _tsv(path: Path) -> list[dict[str, Any]]:
    """With quotes as in a .csv file, or without, where a quote is a letter as any: whichever way all lines have as many
    fields as the first; where both do, the one of more rows, as quotes took in whole lines in the other."""
    with open(path, encoding="utf-8-sig") as file:
        lines = lines_of(file.read())
    try:
        plain = _table(path, enumerate((line.split("\t") if line else [] for line in lines), 1))
    except ValueError:
        return _csv(path, "\t")
    try:
        quoted = _csv(path, "\t")
    except ValueError:
        return plain
    return plain if len(plain) > len(quoted) else quoted


def _table(path: Path, lines: Iterator[tuple[int, list[str]]]) -> list[dict[str, Any]]:
    """lines: numbers and fields, the columns' names first."""
    _, header = next(lines, (0, []))
    if not header or len(set(header)) < len(header):
        raise ValueError(f"{path}: its first line must name the columns, each once, such as text,label; it is {header}")
    rows = []
    for number, fields in lines:
        if not fields:
            continue
        if len(fields) != len(header):
            raise ValueError(
                f"{path}, line {number}: {len(fields)} fields, where the first line names {len(header)} columns "
                f"({', '.join(header)}): quote texts that hold commas"
            )
        rows.append(dict(zip(header, fields)))
    return rows


def _json(path: Path, text: str) -> list[dict[str, Any]]:
    if text.lstrip().startswith("["):
        return [_object(path, "item", i, row) for i, row in enumerate(_parsed(path, "line", 1, text), 1)]
    lines = [(i, line) for i, line in enumerate(lines_of(text), 1) if line.strip()]
    return [_object(path, "line", i, _parsed(path, "line", i, line)) for i, line in lines]


def _parsed(path: Path, what: str, number: int, text: str):
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError(f"{path}, {what} {number}: lists or objects in one another without an end") from None
    except ValueError as error:
        raise ValueError(f"{path}, {what} {number} is no JSON: {error}; a .jsonl file has an object a line") from None


def _object(path: Path, what: str, number: int, row) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise ValueError(
            f'{path}, {what} {number} is no object with named fields, such as {{"text": "...", "label": 0}}'
        )
    return row


def _parquet(path: Path) -> list[dict[str, Any]]:
    try:
        import pyarrow.parquet
    except ImportError:
        raise ImportError(
            f"reading {path} needs the package pyarrow: pip install pyarrow, or save it as CSV or JSONL"
        ) from None
    try:
        return pyarrow.parquet.read_table(path).to_pylist()
    except (ValueError, OSError) as error:
        raise ValueError(f"{path} cannot be read as parquet: {error}") from None


def _of_hub(name: str, split: str) -> list[dict[str, Any]]:
    try:
        import datasets
    except ImportError:
        raise ImportError(
            f"there is no file {name}; reading it from the hub needs the package datasets: pip install datasets, or "
            f"give {FORMATS}"
        ) from None
    try:
        table = datasets.load_dataset(name, split=split)
    except Exception as error:  # offline, no such id or split: the library's own message says which
        raise ValueError(f"there is no file {name}, and the hub did not give its split {split!r}: {error}") from error
    return [dict(row) for row in table]


def _chosen(source: str, columns: Sequence[str], asked: str | None) -> list[str]:
    there = f"its columns are {', '.join(columns)}"
    if asked is not None:
        names = [name.strip() for name in asked.split(",")]
        if absent := [name for name in names if name not in columns]:
            raise ValueError(f"{source} has no column {' and no '.join(absent)}; {there}")
        if len(names) > 2:
            raise ValueError(f"--text takes one column, or two of pairs, not {len(names)}: {asked}")
        return names
    for pair in PAIRS:
        if set(pair) <= set(columns):
            return list(pair)
    for name in TEXT:
        if name in columns:
            return [name]
    raise ValueError(f"{source} has no column of texts by a usual name; {there}: say which, as in --text {columns[0]}")


def _label(source: str, columns: Sequence[str], asked: str | None) -> str | None:
    if asked is not None and asked not in columns:
        raise ValueError(f"{source} has no column {asked}; its columns are {', '.join(columns)}")
    return asked or next((name for name in LABEL if name in columns), None)


def _input(row: dict[str, Any], columns: list[str], folder: Path, where: str) -> Any:
    if columns == ["image"]:
        value = row["image"]
        return folder / value if isinstance(value, str) else value
    if len(columns) == 1 and isinstance(row[columns[0]], list):
        return _tokens(row[columns[0]], row, where)
    for name in columns:
        if isinstance(row[name], dict | list | bool):
            raise ValueError(f"{where} has no text in its column {name}: {shown(row[name])}")
    texts = tuple(str(row[name]) for name in columns)
    return texts[0] if len(texts) == 1 else texts


def _tokens(ids: list, row: dict[str, Any], where: str) -> Any:
    """Token ids without those that a mask beside them leaves out, and with their types where the row has some: what a
    tokenizer gave is read as it was meant, padding included."""
    beside = {name: row[name] for name in (MASK, TYPES) if row.get(name) is not None}
    if odd := [name for name, given in beside.items() if not isinstance(given, list) or len(given) != len(ids)]:
        raise ValueError(f"{where} has not as many {' and '.join(odd)} as token ids, {len(ids)}")
    mask = beside.get(MASK, [1] * len(ids))
    if not all(kept in (0, 1) for kept in mask):
        raise ValueError(f"{where} has an {MASK} of other numbers than 0 and 1")
    cut = lambda given: [one for one, kept in zip(given, mask) if kept]  # noqa: E731
    return {"input_ids": cut(ids), TYPES: cut(beside[TYPES])} if TYPES in beside else cut(ids)


def label_ids(examples: Examples, names: Sequence[str]) -> list[int]:
    """Labels as numbers of classes: by the classes' names, else as the numbers that they are.

    Raises ValueError with the labels that are neither.
    """
    labels, known = examples.labels or [], {name: i for i, name in enumerate(names)}
    given = set(map(str, labels))
    if twice := sorted(name for name, n in Counter(names).items() if n > 1 and name in given):
        raise ValueError(
            f"{examples.source}: labels are called by names that several classes have, {first(twice, 5)}: number "
            f"them, from 0 to {len(names) - 1}"
        )
    numbers = [_number(label) for label in labels]
    found = [known.get(str(label)) for label in labels]
    if None in found and all(number is not None and 0 <= number < len(names) for number in numbers):
        found = list(numbers)
    if None in found:
        strange = sorted({str(label) for label, i in zip(labels, found) if i is None})
        raise ValueError(
            f"{examples.source}: labels in its column {examples.columns.get('label')} are no classes of the fine-tune: "
            f"{first(strange, 5)}; expected {first(names, 8)}, or numbers "
            f"from 0 to {len(names) - 1}: say --classes 'a, b, c' where the fine-tune does not name its own"
        )
    return [i for i in found if i is not None]


def _number(label: Any) -> int | None:
    try:
        return int(float(label)) if float(label) == int(float(label)) else None
    except (ValueError, TypeError, OverflowError):
        return None
