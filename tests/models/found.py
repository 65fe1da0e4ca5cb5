"""What the rows were found to do: kept beside the table, so that the page and the tests agree on it."""

from __future__ import annotations

import importlib.metadata
import json
import re
from pathlib import Path

from tests.models.check import Outcome
from tests.models.row import Row

FILE = Path(__file__).with_name("found.json")
LIBRARIES = ("transformers", "timm", "diffusers", "torch")
Found = dict[str, dict[str, object]]


def read() -> Found:
    return json.loads(FILE.read_text("utf-8"))["rows"]


def written_with() -> dict[str, str]:
    """Versions of the libraries that the rows were found with."""
    return json.loads(FILE.read_text("utf-8"))["versions"]


def here() -> dict[str, str]:
    """Versions of the libraries that are installed."""
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name).split("+")[0]
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def write(rows: Found) -> None:
    """Rows of a library that is not installed are kept, with its version."""
    versions = (written_with() if FILE.exists() else {}) | here()
    text = json.dumps({"versions": versions, "rows": rows}, indent=1, sort_keys=True)
    FILE.write_text(text + "\n", "utf-8")


def of(row: Row, outcome: Outcome) -> dict[str, object]:
    """What is kept of an outcome: all that is the same on every machine."""
    return {
        "class": row.kind,
        "grouped": sorted({plain(reason) for reason in outcome.grouped}),
        "alone": list(outcome.once_a_task),
        "generates": row.prompt is not None,
    }


def plain(reason: str) -> str:
    """A reason without the sizes of a tiny model and the words of PyTorch."""
    return re.sub(r" \[[\d, ]*\]", "", reason.split(": ")[0])
