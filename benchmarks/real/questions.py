"""The rows of a benchmark: from the hub, or from a mirror's folder of JSON lines."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

from benchmarks.quality.published import hub
from benchmarks.quality.published.hub import Data
from benchmarks.real.access import place_of
from benchmarks.real.scores import DATA
from dts.demo.tasks import MissingData

Row = dict[str, Any]


def questions(benchmark: str, mirror: Path | None, limit: int | None = None) -> list[Row]:
    """The rows of all of the benchmark's data sets, in order, at most ``limit`` spread evenly over them."""
    rows = [row for data in DATA[benchmark] for row in _rows(data, mirror)]
    if not rows:
        raise MissingData(f"the data of {benchmark} has no rows")
    if limit is not None and limit < len(rows):
        rows = [rows[i * len(rows) // limit] for i in range(limit)]
    return rows


def _rows(data: Data, mirror: Path | None) -> list[Row]:
    place = Path(place_of(data.path, mirror))
    if not place.is_dir():
        return [dict(row) for row in hub.load_rows(data)]
    names = [
        f"{part}{data.split}.jsonl{end}"
        for part in filter(None, (data.config and f"{data.config}/", ""))
        for end in ("", ".gz")
    ]
    names += [f"{data.split}.jsonl", f"{data.split}.jsonl.gz"]
    for name in names:
        if (place / name).is_file():
            opened = gzip.open if name.endswith(".gz") else open
            with opened(place / name, "rt", encoding="utf-8") as lines:
                return [json.loads(line) for line in lines if line.strip()]
    raise MissingData(f"{place} has none of {', '.join(dict.fromkeys(names))}")
