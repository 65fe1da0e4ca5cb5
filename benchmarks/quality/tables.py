"""The tables of methods of docs/quality.md, as Markdown, from the committed rows: a test compares the page with them.

python -m benchmarks.quality.tables
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import mean, stdev

from benchmarks.quality.groups import SUITES, XEON, duels, groups, size_text
from benchmarks.quality.peers import SIZES
from benchmarks.quality.report import COMMITTED
from benchmarks.quality.rows import fine_tune, load
from benchmarks.quality.style import label

TITLES = {
    "sketch": "sketch",
    "residual": "residual",
    "dts paper": "paper's DTS, packed",
    "drop 4 bit": "random drop + 4 bit",
    "delta-come": "Delta-CoMe",
    "ultradelta": "UltraDelta, positions counted",
    "svd 4 bit": "truncated SVD, 4 bits",
    "svd 8 bit": "truncated SVD, 8 bits",
    "prinmix": "PrinMix",
    "impart-qt": "ImPart-Qt",
}


@dataclass(frozen=True)
class Line:
    """Of one method: means over the fine-tunes of these tasks (none named: all) and seeds; processor: alone those that
    say they are of it, or with "" those that do not say."""

    suite: str
    method: str
    before: str = ""
    tasks: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0,)
    processor: str | None = None

    @property
    def title(self) -> str:
        name = TITLES[self.method]
        return self.before + (f"**{name}**" if SUITES[self.suite][1] == self.method else name)

    def rows(self, suites: dict[str, list[dict]]) -> list[dict]:
        return [
            row
            for row in suites[self.suite]
            if row["method"] == self.method
            and row["seed"] in self.seeds
            and (not self.tasks or row["task"] in self.tasks)
            and self.processor in (None, row.get("processor", ""))
        ]


def lines(suite: str, methods: str, before: str = "", **which) -> tuple[Line, ...]:
    """Of methods by commas; before: how the first's title begins."""
    return tuple(Line(suite, name, "" if i else before, **which) for i, name in enumerate(methods.split(",")))


@dataclass(frozen=True)
class Table:
    """measures: what a cell shows, by semicolons: kl (nats; ± over seeds), agreement and adr (accuracy lost), in %."""

    heading: str
    lines: tuple[Line, ...]
    sizes: tuple[float, ...] = SIZES
    measures: tuple[str, ...] = ("kl",)


FIRST_THREE = ("sick_e", "stackoverflow20", "banking77")
TABLES = (
    Table(
        "accuracy lost, %",
        lines("text", "sketch,drop 4 bit,svd 4 bit", "text, embeddings frozen: ", processor="")
        + lines("text all", "sketch,drop 4 bit,svd 4 bit", "text, all parameters: ", processor="")
        + lines("images", "residual,drop 4 bit,svd 4 bit,prinmix", "images: ", processor=""),
        measures=("adr",),
    ),
    Table(
        "text, embeddings frozen",
        lines(
            "text",
            "sketch,residual,drop 4 bit,svd 4 bit,svd 8 bit,prinmix,impart-qt,delta-come,dts paper,ultradelta",
            processor=XEON,
        ),
    ),
    Table(
        "text, all parameters",
        lines(
            "text all",
            "sketch,residual,svd 4 bit,svd 8 bit,prinmix,impart-qt,drop 4 bit,dts paper,delta-come",
            processor="",
        )
        + lines("text all", "sketch,delta-come,ultradelta", "on the first three tasks alone: ", tasks=FIRST_THREE)
        + lines("text all", "sketch,delta-come,svd 4 bit", "atis and sms_spam, trained again: ", processor=XEON)
        + lines("text all", "sketch,residual,svd 4 bit,drop 4 bit", "a second seed of all six: ", seeds=(1,)),
    ),
    Table(
        "images",
        lines(
            "images",
            "residual,sketch,prinmix,impart-qt,delta-come,svd 4 bit,svd 8 bit,drop 4 bit,dts paper,ultradelta",
            processor="",
        ),
    ),
    Table(
        "images, a second seed",
        lines(
            "images",
            "residual,sketch,prinmix,impart-qt,delta-come,svd 4 bit,svd 8 bit,drop 4 bit,dts paper",
            seeds=(1,),
            processor=XEON,
        ),
    ),
    Table(
        "language, embeddings frozen",
        lines("language", "sketch,residual,drop 4 bit,dts paper", seeds=(0, 1, 2), processor=""),
        (0.0025, 0.01, 0.028),
        ("kl", "agreement"),
    ),
    Table(
        "gsm8k and mbpp, embeddings frozen, trained again",
        lines("language", "sketch,residual,svd 4 bit,drop 4 bit", processor=XEON),
        measures=("kl", "agreement"),
    ),
    Table(
        "gsm8k and mbpp, all parameters",
        lines("language all", "sketch,residual,svd 4 bit,drop 4 bit,delta-come,dts paper"),
        measures=("kl", "agreement"),
    ),
)


def kl_text(value: float) -> str:
    """Three digits, but four places at most, and never nothing."""
    places = 2 if value >= 0.9995 else 3 if value >= 0.09995 else 4
    text = f"{value:.{places}f}"
    if value and not float(text):
        text = f"{value:.5f}" if value >= 5e-6 else f"{value:.0e}".replace("e-0", "e-")
    return text.removeprefix("0")


def percent_text(value: float) -> str:
    return f"{100 * value:.1f}" if abs(value) >= 0.00995 else f"{100 * value:.2f}".replace("0.", ".", 1)


SHOWN: dict[str, Callable[[float], str]] = {"kl": kl_text, "agreement": percent_text, "adr": percent_text}


def cell(rows: list[dict], measures: tuple[str, ...]) -> str:
    shown = [SHOWN[name](mean(row[name] for row in rows)) for name in measures if rows]
    seeds: dict[int, list[float]] = {}
    for row in rows:
        seeds.setdefault(row["seed"], []).append(row["kl"])
    if len(seeds) > 1 and measures[0] == "kl":
        shown[0] += f" ± {stdev(map(mean, seeds.values())):.4f}".replace("0.", ".", 1)
    return "; ".join(shown)


def markdown(table: Table, suites: dict[str, list[dict]]) -> str:
    body = []
    for line in table.lines:
        own = line.rows(suites)
        found = [[row for row in own if row["size"] == size] for size in table.sizes]
        # of one seed a mean over fewer tasks cannot be compared
        least = len({fine_tune(row) for row in own}) if len(line.seeds) == 1 else 1
        body.append([line.title, *(cell(rows, table.measures) if len(rows) >= least else "" for rows in found)])
    return written([table.heading, *map(size_text, table.sizes)], body)


def written(head: list[str], body: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *body))


# --- who is best -------------------------------------------------------------------------------------------------


def beaten(rows: list[dict], method: str) -> str:
    """How often, of all fine-tunes and sizes, some peer asked for that size is closer than ``method``; and by most."""
    found = duels(rows, method)
    lost = sum(ratio > 1 for ratio, _, _ in found)
    ratio, _, words = max(found)
    return f"{lost} of {len(found)}" + (f"; at most {ratio:.1f} times: {words}" if lost else "")


def standings(suites: dict[str, list[dict]]) -> str:
    """A row a group of fine-tunes."""
    body = []
    for group in groups(suites):
        at = group.at
        shown = [
            f"{at[size].ratio:.2f} {label(at[size].peer)}".removeprefix("0") if size in at else "" for size in SIZES
        ]
        body.append([f"{group.name}: {group.method}", group.which, *shown, beaten(group.rows, group.method)])
    return written(["KL over the best peer's", "tasks", *map(size_text, SIZES), "a peer is closer"], body)


def tables(suites: dict[str, list[dict]]) -> Iterator[str]:
    """Every table of the page, in its order."""
    yield standings(suites)
    yield from (markdown(table, suites) for table in TABLES)


if __name__ == "__main__":
    print("\n\n".join(tables(load([COMMITTED]))))
