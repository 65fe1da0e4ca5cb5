"""Fine-tunes that can be compared: of each suite those on which the same methods were measured, at equal bytes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from benchmarks.quality import ratios
from benchmarks.quality.peers import PEERS
from benchmarks.quality.rows import cells, comparable, fine_tune
from benchmarks.quality.style import label

SUITES = {  # suite: (as the page names it, the method that is the default there)
    "text": ("text, embeddings frozen", "sketch"),
    "text all": ("text, all parameters", "sketch"),
    "images": ("images", "residual"),
    "language": ("language, embeddings frozen", "sketch"),
    "language all": ("language, all parameters", "sketch"),
}
XEON = "Intel(R) Xeon(R) Processor"  # with AMX: what was trained again there


@dataclass(frozen=True)
class Group:
    """Fine-tunes of one suite on which the same methods were measured, compared at equal bytes.

    method: this project's default there;  at: its `ratios.Ratio` at each size;  which: the fine-tunes, in words."""

    suite: str
    rows: list[dict]

    @property
    def name(self) -> str:
        return SUITES[self.suite][0]

    @property
    def method(self) -> str:
        return SUITES[self.suite][1]

    @property
    def which(self) -> str:
        tasks, seeds, processors = ({row.get(key) for row in self.rows} for key in ("task", "seed", "processor"))
        words = f"{len(tasks)}, seed{'s' * (len(seeds) > 1)} {' and '.join(map(str, sorted(seeds)))}"
        number = len(set(map(fine_tune, self.rows)))
        if number != len(tasks) * len(seeds):
            words += f" ({number} fine-tunes)"
        return words + ", Xeon" * (processors == {XEON})

    @cached_property
    def at(self) -> dict[float, ratios.Ratio]:
        return {one.share: one for one in ratios.ratios(self.rows, cells(self.rows)) if one.method == self.method}


def groups(suites: dict[str, list[dict]]) -> Iterator[Group]:
    """Of each suite the first seed's fine-tunes and the others', each those that the most can be compared on, then what
    is left: fine-tunes that were trained again, or measured beside fewer peers."""
    for suite in SUITES:
        for first in (True, False):
            measured = [row for row in suites[suite] if (row["seed"] == 0) == first]
            while measured:
                rows, _ = comparable(measured)
                yield Group(suite, rows)
                seen = set(map(fine_tune, rows))
                measured = [row for row in measured if fine_tune(row) not in seen]


def duels(rows: list[dict], method: str) -> list[tuple[float, float, str]]:
    """(KL of ``method`` over the least of the peers asked for that size, the size, the task, size and peer in words) of
    all fine-tunes and sizes."""
    kls: dict[tuple, dict[str, float]] = {}
    for row in rows:
        kls.setdefault((fine_tune(row), row["size"]), {})[row["method"]] = row["kl"]
    found = []
    for (one, size), kl in kls.items():
        theirs = [(kl[peer], peer) for peer in kl if peer in PEERS]
        if method in kl and theirs and size is not None:
            least, peer = min(theirs)
            found.append((kl[method] / least, size, f"{one[0]}, {size_text(size)}, {label(peer)}"))
    return found


def size_text(size: float) -> str:
    return f"{100 * size:g} %"
