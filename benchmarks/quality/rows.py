"""Rows of the suites (`suite.measure`) as the report uses them: compact files, and means over fine-tunes.

All methods of a suite are compared at the same ``share``: bytes over the fp32 bytes of the matrices that the suite
compresses.  A row of a whole adapter folder counts all the folder's bytes over those same matrices.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from statistics import mean, stdev

from dts.files import write_text

DROPPED = ("key", "identity")  # what only continues an interrupted run
FINE_TUNE = ("task", "seed", "processor")  # training on another processor, which rounds otherwise, gives another one
SAME = (*FINE_TUNE, "draw", "method", "size")
FIRST = ("text", "text all", "images", "language", "language all")  # the order of the suites
DIGITS = 5
MEASURES = (
    "share",
    "published_share",
    "shared",
    "accuracy",
    "finetuned_accuracy",
    "adr",
    "agreement",
    "kl",
    "loss",
    "finetuned_loss",
    "base_loss",
    "squared_error",
    "seconds",
)


def pack(rows: list[dict]) -> dict:
    """{"columns": [...], "rows": [[...], ...]}, numbers to 5 digits: a tenth of the rows' own JSON."""
    rows = [_told(row) for row in rows]
    columns = list(dict.fromkeys(name for row in rows for name in row if name not in DROPPED))
    return {"columns": columns, "rows": [_packed(row, columns) for row in rows]}


def _packed(row: dict, columns: list[str]) -> list:
    """Without what is missing at the end: a column that comes later leaves older rows as they are."""
    values = [_short(row.get(name)) for name in columns]
    while values and values[-1] is None:
        values.pop()
    return values


def fine_tune(row: dict) -> tuple:
    return tuple(row.get(name) for name in FINE_TUNE)


def unpack(content: dict) -> list[dict]:
    return [
        {name: value for name, value in zip(content["columns"], row) if value is not None or name == "size"}
        for row in content["rows"]
    ]


def _told(row: dict) -> dict:
    """With the fine-tune's ``identity`` and the ``samples`` it was measured on, which a measured row has in its key."""
    if "key" not in row:
        return row
    _, _, _, _, identity, samples, *_ = json.loads(row["key"])
    return row | {"identity": identity, "samples": samples}


def _short(value):
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value


def save(rows: list[dict], path: Path) -> None:
    """A line a row, so that a change is a readable difference."""
    packed = pack(rows)
    lines = ",\n".join(json.dumps(row, separators=(",", ":")) for row in packed["rows"])
    write_text(path, f'{{"columns":{json.dumps(packed["columns"])},\n"rows":[\n{lines}\n]}}\n')


def load(paths: Iterable[Path]) -> dict[str, list[dict]]:
    """{suite: rows} of compact files, of JSON lines, and of folders of them.

    A file of JSON lines keeps all that was ever measured.  Of each task, seed and processor only the last fine-tune
    counts, and of that the number of samples with the most rows; of rows alike in method, size and draw the last."""
    suites: dict[str, list[dict]] = {}
    for path in _files(paths):
        for row in _read(path):
            row = {name: _short(value) for name, value in _told(row).items()}  # as a compact file has it
            suites.setdefault(row.get("suite", path.stem), []).append(row)
    order = sorted(suites, key=lambda suite: (FIRST.index(suite) if suite in FIRST else len(FIRST), suite))
    return {suite: _current(suites[suite]) for suite in order}


def _current(rows: list[dict]) -> list[dict]:
    """A row that does not say of which fine-tune it is, or on how many samples, is taken as it is."""
    last = {fine_tune(row): row["identity"] for row in rows if "identity" in row}
    rows = [row for row in rows if row.get("identity") in (None, last.get(fine_tune(row)))]
    counts: dict[tuple, Counter] = {}
    for row in rows:
        if "samples" in row:
            counts.setdefault(fine_tune(row), Counter())[row["samples"]] += 1
    usual = {one: max(count, key=lambda samples: (count[samples], samples)) for one, count in counts.items()}
    rows = [row for row in rows if row.get("samples") in (None, usual.get(fine_tune(row)))]
    return list({tuple(row.get(name) for name in SAME): row for row in rows}.values())


def _files(paths: Iterable[Path]) -> list[Path]:
    found = []
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(f"no results at {path}")
        found += sorted(p for p in path.iterdir() if p.suffix in (".json", ".jsonl")) if path.is_dir() else [path]
    return found


def _read(path: Path) -> list[dict]:
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text().splitlines()]
    content = json.loads(path.read_text())
    return unpack(content) if isinstance(content, dict) and "columns" in content else []


def comparable(rows: list[dict]) -> tuple[list[dict], list[str]]:
    """The rows of the fine-tunes on which the most methods and sizes, times tasks, can be compared; and the methods,
    with sizes, that were not measured on all of them.  Means over other fine-tunes could not be compared."""
    seen: dict[tuple, set] = {}
    for row in rows:
        seen.setdefault((row["method"], row["size"]), set()).add(fine_tune(row))

    def compared(fine_tunes: frozenset) -> tuple[int, int]:
        covering = sum(measured >= fine_tunes for measured in seen.values())
        return covering * len({task for task, *_ in fine_tunes}), len(fine_tunes)

    usual = max(map(frozenset, seen.values()), key=compared)
    whole = {cell for cell, fine_tunes in seen.items() if fine_tunes >= usual}
    kept = [r for r in rows if (r["method"], r["size"]) in whole and fine_tune(r) in usual]
    left: dict[str, list[str]] = {}
    for method, size in seen.keys() - whole:
        left.setdefault(method, []).append(f"{100 * size:g} %" if size else "its own size")
    return kept, [f"{method} ({', '.join(sorted(sizes))})" for method, sizes in sorted(left.items())]


def cells(rows: list[dict]) -> list[dict]:
    """One a method and size, by size: means over tasks, seeds and draws of what all its rows have, the worst task's
    drop and KL, ``runs``, ``fine_tunes`` (how many), and ``kl_deviation`` of the mean over (seed, draw)."""
    groups: dict[tuple, list[dict]] = {}
    for row in rows:
        groups.setdefault((row["method"], row["size"]), []).append(row)
    out = []
    for (method, size), cell in groups.items():
        one = {"method": method, "size": size, "runs": len(cell)}
        one["fine_tunes"] = len({fine_tune(row) for row in cell})
        for name in MEASURES:
            if all(row.get(name) is not None for row in cell):
                one[name] = mean(row[name] for row in cell)
        one["worst_kl"] = max(row["kl"] for row in cell)
        if "adr" in one:
            one["worst_adr"] = max(row["adr"] for row in cell)
        repeats: dict[tuple, list[float]] = {}
        for row in cell:
            repeats.setdefault((row["seed"], row.get("draw", 0)), []).append(row["kl"])
        one["kl_deviation"] = stdev([mean(r) for r in repeats.values()]) if len(repeats) > 1 else None
        out.append(one)
    return sorted(out, key=lambda cell: cell["share"])


def line(cells: list[dict], method: str, measure: str = "kl") -> list[tuple[float, float]]:
    """(share, measure) of one method, by share."""
    return [(cell["share"], cell[measure]) for cell in cells if cell["method"] == method and measure in cell]


def at(points: list[tuple[float, float]], share: float, logarithmic: bool = True) -> float | None:
    """The measure at ``share``: between the two sizes around it, linear in log share and, if ``logarithmic``, in log
    measure.  Beyond the largest size its last value (bytes may be left unused); None below the smallest."""
    if not points or share < points[0][0] * 0.999:
        return None
    for (x0, y0), (x1, y1) in zip(points, points[1:]):
        if share <= x1:
            t = math.log(share / x0) / math.log(x1 / x0) if x1 > x0 else 1.0
            t = min(1.0, max(0.0, t))
            if logarithmic and y0 > 0 and y1 > 0:
                return math.exp((1 - t) * math.log(y0) + t * math.log(y1))
            return (1 - t) * y0 + t * y1
    return points[-1][1]


def share_for(points: list[tuple[float, float]], value: float) -> tuple[float, bool] | None:
    """(the least share at which the measure is ``value`` or less, whether it may be less still); None if never.

    Between sizes as `at`.  It may be less if the smallest size measured is good enough."""
    if not points:
        return None
    if points[0][1] <= value:
        return points[0][0], True
    for (x0, y0), (x1, y1) in zip(points, points[1:]):
        if y1 <= value:
            t = math.log(y0 / value) / math.log(y0 / y1) if y1 > 0 else 1.0
            return math.exp((1 - t) * math.log(x0) + t * math.log(x1)), False
    return None
