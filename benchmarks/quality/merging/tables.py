"""Rows of all parts as tables: means over tasks, and their deviation over the fine-tunes' seeds."""

from __future__ import annotations

import statistics
from statistics import fmean


def tables(rows: list[dict]) -> str:
    of = lambda part: [row for row in rows if row["part"] == part]  # noqa: E731
    parts = _bases(of("bases")) + _adapters(of("adapters")) + _unseen(of("unseen")) + _routing(of("routing"))
    return "\n\n".join(parts)


def _bases(rows: list[dict]) -> list[str]:
    values = by(rows, lambda r: r["method"], lambda r: fmean(r["accuracy"].values()))
    return [table("Merged models alone, own heads: mean accuracy", values)] if rows else []


def _adapters(rows: list[dict]) -> list[str]:
    def label(row: dict) -> str:
        return f"{100 * row['budget']:.2f} %  DTS-" + ("T" if row["base"] == "pretrained" else f"D on {row['base']}")

    values = by(rows, label, lambda r: fmean(r["accuracy"].values()))
    return [table("Adapters at equal bytes: mean accuracy", values)] if rows else []


def _unseen(rows: list[dict]) -> list[str]:
    shown = with_best_single(rows)
    return [
        table(f"Tasks never seen, {title}", by(shown, lambda r: r["encoder"], lambda r, figure=figure: r[figure]))
        for title, figure in (("own heads: mean accuracy", "accuracy"), ("zero-shot by class names", "zero_shot"))
        if rows
    ]


def with_best_single(rows: list[dict]) -> list[dict]:
    """The rows, with those of single tasks replaced by the best of each seed and unseen task."""
    best: dict[tuple, dict] = {}
    for row in rows:
        if row["encoder"].startswith("single "):
            at = row["seed"], row["task"]
            best[at] = max(row, best.get(at, row), key=lambda r: r["accuracy"])
    kept = [row for row in rows if not row["encoder"].startswith("single ")]
    return kept + [row | {"encoder": "best single task (chosen on the test set)"} for row in best.values()]


def _routing(rows: list[dict]) -> list[str]:
    out = []
    for among in dict.fromkeys(row["among"] for row in rows):
        some = [row for row in rows if row["among"] == among]
        for title, figure in (
            ("rows sent to the right task", "routed"),
            ("accuracy with the true task", "accuracy"),
            ("accuracy where each row goes as routed", "accuracy_routed"),
        ):
            values = by(some, lambda r: r["router"], lambda r, figure=figure: fmean(r[figure].values()))
            values = values if figure != "accuracy" else [("adapters", values[0][1])]
            out.append(table(f"Routing among {among} tasks: {title}", values))
    energy = [row for row in rows if "share_of_a_pass" in row and row["among"] == "all"]
    if energy:
        values = by(energy, lambda r: r["router"], lambda r: r["share_of_a_pass"])
        out.append(table("Routing: time, of one pass of the base", values))
    return out


def table(title: str, rows: list[tuple[str, list[float]]]) -> str:
    """A line an item: mean and, over seeds, standard deviation, in %."""
    lines = [title]
    for name, values in rows:
        spread = f" ± {100 * statistics.stdev(values):.2f}" if len(values) > 1 else ""
        lines.append(f"  {name:44} {100 * fmean(values):6.2f}{spread} %")
    return "\n".join(lines)


def by(rows: list[dict], name, value) -> list[tuple[str, list[float]]]:
    """One value a seed (the mean over the seed's rows) of every name."""
    found: dict[str, dict[int, list[float]]] = {}
    for row in rows:
        found.setdefault(name(row), {}).setdefault(row["seed"], []).append(value(row))
    return [(key, [fmean(values) for values in seeds.values()]) for key, seeds in found.items()]
