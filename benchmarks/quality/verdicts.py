"""Which targets the default method meets, in the mean of each group of fine-tunes: a table of docs/quality.md, from the
committed rows.

python -m benchmarks.quality.verdicts
"""

from __future__ import annotations

from collections.abc import Iterator
from statistics import mean

from benchmarks.quality.groups import Group, duels, groups, size_text
from benchmarks.quality.peers import SIZES
from benchmarks.quality.report import COMMITTED
from benchmarks.quality.rows import load
from benchmarks.quality.tables import percent_text, written
from benchmarks.quality.targets import ADR_SIZE, RATIO

LOOSER = {"images": {0.001: 0.7, 0.0025: 0.7}}  # limits of KL over the best peer's, where they are not RATIO
LOST = 0.002  # of accuracy at ADR_SIZE, of text
SMALLEST = SIZES[0]
HEAD = ["", "tasks", *(f"KL at {size_text(size)}" for size in SIZES), "accuracy at 0.5 %", "single ones at 0.1 %"]


def mark(met: bool, figure: str) -> str:
    return f"{'✔' if met else '✘'} {figure}"


def verdicts(group: Group) -> Iterator[str]:
    """Cells: the KL over the best peer's at each size, accuracy lost, and on how many of the fine-tunes a peer is
    closer at the smallest size; each after whether its target is met; empty where not measured, or no target."""
    limits = LOOSER.get(group.suite, {})
    for size in SIZES:
        found = group.at.get(size)
        yield mark(found.ratio <= limits.get(size, RATIO), f"{found.ratio:.2f}".removeprefix("0")) if found else ""
    own = [row for row in group.rows if row["method"] == group.method and row["size"] == ADR_SIZE]
    lost = mean(row["adr"] for row in own) if own and group.suite.startswith("text") else None
    yield "" if lost is None else mark(lost <= LOST, percent_text(lost))
    single = [ratio for ratio, size, _ in duels(group.rows, group.method) if size == SMALLEST]
    worse = sum(ratio > 1 for ratio in single)
    yield mark(not worse, f"{worse} of {len(single)}") if single and group.suite.startswith("text") else ""


def table(suites: dict[str, list[dict]]) -> str:
    return written(HEAD, [[group.name, group.which, *verdicts(group)] for group in groups(suites)])


if __name__ == "__main__":
    print(table(load([COMMITTED])))
