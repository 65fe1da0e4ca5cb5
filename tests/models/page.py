"""The page of the table: ``docs/models.md``."""

from __future__ import annotations

from pathlib import Path

from tests.models.check import TOLERANCE
from tests.models.found import Found
from tests.models.row import Row

PAGE = Path(__file__).resolve().parents[2] / "docs" / "models.md"
_HEAD = """# Models

<!-- written by `python -m tests.models` from tests/models/table.py; do not edit -->

Every row below is a test (`make models`; a few of them are in `make test`). A tiny model of the family is made with
random weights and two fine-tunes of it in which every parameter moved. They are saved by their own library, compressed,
and loaded into one `DTSModel`; the dense model of a task is base + adapter, written as a checkpoint and loaded by the
library. Compared in float32 are: the base, one task named in the call, one task that is set, a batch with a task or the
base a row, the model that `merge_and_unload` leaves and all its tensors, and, where the family generates, the tokens of
two tasks in one batch, greedy and with two beams. A difference above {tolerance} of the dense output's norm fails, and
so do a task that answers as the base or as the other task, and one no nearer to its fine-tune than the base is.

{total} families work, {failing}. Versions: {versions}.

- **together**: rows of several tasks go through the model in one pass. Modules in brackets run once for each task in
  the batch, on its rows.
- **once a task**: the whole model runs once for each task in the batch, for the reason given (`model.status()`).
"""


def page(rows: list[Row], found: Found, versions: dict[str, str]) -> str:
    """The text of the page, of what the rows were found to do."""
    failing = [row for row in rows if row.fails]
    text = _HEAD.format(
        tolerance=f"{TOLERANCE:.5f}",
        total=len(rows) - len(failing),
        failing=f"{len(failing)} {'does' if len(failing) == 1 else 'do'} not",
        versions=", ".join(f"{name} {versions[name]}" for name in dict.fromkeys(row.library for row in rows)),
    )
    for section in dict.fromkeys(row.section for row in rows):
        text += f"\n## {section}\n\n| family | class | a task a row | generate |\n| --- | --- | --- | --- |\n"
        for row in rows:
            if row.section == section:
                text += _line(row, found)
    return text


def _line(row: Row, found: Found) -> str:
    if row.fails:
        return f"| {row.name} | `{row.kind}` | **fails**: {row.fails} | |\n"
    was = found[row.name]
    grouped, alone = was["grouped"], was["alone"]
    assert isinstance(grouped, list) and isinstance(alone, list)
    how = f"once a task: {'; '.join(grouped)}" if grouped else "together"
    if alone and not grouped:
        how += f" ({', '.join(f'`{name}`' for name in alone)})"
    return f"| {row.name} | `{row.kind}` | {how} | {'yes' if was['generates'] else ''} |\n"
