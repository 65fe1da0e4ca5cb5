"""One static page, `index.html`, with the plots of every suite measured so far, beside the figures as JSON."""

from __future__ import annotations

import html
import json
from pathlib import Path

from benchmarks.quality.peers import PEERS

OURS = "#c0392b"
PLOTS = {  # measure: (label, multiply by, logarithmic, least shown)
    "kl": ("mean KL to the fine-tuned model, nats", 1, True, 1e-5),
    "adr": ("mean accuracy drop, %", 100, False, None),
    "agreement": ("mean agreement with the fine-tuned model, %", 100, False, None),
    "accuracy": ("mean accuracy, %", 100, False, None),
}


def write(out: Path, suite: str, cells: list[dict], rows: list[dict]) -> Path:
    """Writes `<suite>.json` (the summary's cells and all rows) and the plots of `suite`, and `index.html` over every
    suite in `out`.  Returns the page's path."""
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{suite}.json").write_text(json.dumps({"cells": cells, "rows": rows}, indent=1))
    for measure in PLOTS:
        frontier(cells, measure, out / f"{suite}-{measure}")
    bars(rows, out / f"{suite}-tasks")
    page = out / "index.html"
    page.write_text(_page(out))
    return page


def frontier(cells: list[dict], measure: str, path: Path) -> None:
    """`measure` against bytes, a line a method; ours thick, methods of one size as points.  PNG and SVG."""
    label, factor, logarithmic, least = PLOTS[measure]
    figure, axes = _figure(7.5, 5)
    methods = {cell["method"]: [] for cell in cells}
    for cell in sorted(cells, key=lambda cell: cell["share"]):
        value = max(factor * cell[measure], least) if least else factor * cell[measure]
        methods[cell["method"]].append((100 * cell["share"], value))
    for method, points in methods.items():
        style = (
            {"color": OURS, "linewidth": 2.5, "zorder": 5} if method not in PEERS else {"linewidth": 1, "alpha": 0.8}
        )
        axes.plot(*zip(*points), marker="o", markersize=4, label=method, **style)
    if measure in ("accuracy", "adr"):
        finetuned = 100 * sum(cell["finetuned_accuracy"] for cell in cells) / len(cells)
        axes.axhline(finetuned if measure == "accuracy" else 0, color="black", linewidth=0.8, linestyle=":")
    axes.set(
        xscale="log", yscale="log" if logarithmic else "linear", xlabel="bytes of one task, % of fp32", ylabel=label
    )
    axes.grid(alpha=0.25, which="both")
    axes.legend(fontsize=7, ncols=2)
    _save(figure, path)


def bars(rows: list[dict], path: Path, size: float | None = None) -> None:
    """KL of each task, a bar a method, at the size nearest to `size` (default: the one most methods share)."""
    sizes = [row["size"] for row in rows if row["size"] is not None]
    size = size or max(set(sizes), key=lambda s: (len({row["method"] for row in rows if row["size"] == s}), -s))
    chosen = [row for row in rows if row["size"] == size]
    methods = list(dict.fromkeys(row["method"] for row in chosen))
    tasks = list(dict.fromkeys(row["task"] for row in chosen))
    figure, axes = _figure(max(6, 1.1 * len(tasks)), 4)
    width = 0.85 / len(methods)
    for i, method in enumerate(methods):
        values = [_mean([row["kl"] for row in chosen if (row["method"], row["task"]) == (method, t)]) for t in tasks]
        positions = [x + (i + 0.5) * width for x in range(len(tasks))]
        axes.bar(positions, values, width, label=method, color=None if method in PEERS else OURS)
    axes.set(yscale="log", ylabel=f"KL at {100 * size:g} % of fp32, nats")
    axes.set_xticks([x + 0.42 for x in range(len(tasks))], tasks, rotation=30, ha="right", fontsize=8)
    axes.legend(fontsize=7, ncols=3)
    _save(figure, path)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else float("nan")


def _figure(width: float, height: float):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots()


def _save(figure, path: Path) -> None:
    figure.savefig(path.with_suffix(".png"), dpi=130)
    figure.savefig(path.with_suffix(".svg"))


def _page(out: Path) -> str:
    parts = []
    for path in sorted(out.glob("*.json")):
        suite, content = path.stem, json.loads(path.read_text())
        tasks = sorted({(row["task"], row["seed"]) for row in content["rows"]})
        parts.append(f"<h2>{html.escape(suite)}</h2><p>{len(tasks)} fine-tunes: "
                     f"{html.escape(', '.join(sorted({task for task, _ in tasks})))}.</p>")  # fmt: skip
        parts += [f'<a href="{suite}-{plot}.svg"><img src="{suite}-{plot}.png" alt="{plot}"></a>'
                  for plot in [*PLOTS, "tasks"]]  # fmt: skip
        parts.append(_table(content["cells"]))
    return PAGE.format("\n".join(parts))


COLUMNS = {  # heading: how a cell shows it
    "method": lambda cell: html.escape(cell["method"]),
    "% of fp32": lambda cell: f"{100 * cell['share']:.3f}",
    "as its paper counts": lambda cell: f"{100 * cell['published_share']:.3f}",
    "shared by all tasks": lambda cell: f"{100 * cell['shared']:.0f}" if cell["shared"] else "",
    "accuracy %": lambda cell: f"{100 * cell['accuracy']:.2f}",
    "drop %": lambda cell: f"{100 * cell['adr']:.2f}",
    "worst drop %": lambda cell: f"{100 * cell['worst_adr']:.2f}",
    "agreement %": lambda cell: f"{100 * cell['agreement']:.2f}",
    "KL": lambda cell: f"{cell['kl']:.5f}" + (f" ± {cell['kl_deviation']:.5f}" if cell["kl_deviation"] else ""),
    "worst KL": lambda cell: f"{cell['worst_kl']:.4f}",
    "runs": lambda cell: str(cell["runs"]),
}


def _table(cells: list[dict]) -> str:
    head = "".join(f"<th>{name}</th>" for name in COLUMNS)
    body = "".join(
        f"<tr{'' if cell['method'] in PEERS else ' class=ours'}>"
        + "".join(f"<td>{show(cell)}</td>" for show in COLUMNS.values())
        + "</tr>\n"
        for cell in sorted(cells, key=lambda cell: (cell["share"], cell["kl"]))
    )
    return f"<table><tr>{head}</tr>\n{body}</table>"


PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>DTS: quality for the bytes</title>
<style>
body {{ font: 15px/1.5 sans-serif; max-width: 75em; margin: 2em auto; padding: 0 1em }}
img {{ width: 49%; min-width: 26em }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums }}
td, th {{ padding: .15em .7em; text-align: right; border-bottom: 1px solid #ddd }}
td:first-child, th:first-child {{ text-align: left }}
.ours {{ background: #fbeceb; font-weight: bold }}
</style>
<h1>Quality for the bytes</h1>
<p>Each method at several sizes, in % of the compressed matrices in fp32; means over tasks, against the fine-tuned
model. Biases, norms and heads are exact for every method. Peers are re-implemented with their published settings;
their file headers and masks that a seed regenerates are counted as free.</p>
{}
</html>
"""
