"""The report's HTML: one static page without scripts; its plots are files beside it."""

from __future__ import annotations

import html
from pathlib import Path

from benchmarks.quality import plots, ratios, targets, theory_page
from benchmarks.quality.markup import image, kl_text, ratio_text, slug, table
from benchmarks.quality.peers import PEERS
from benchmarks.quality.rows import cells as cells_of
from benchmarks.quality.rows import comparable
from benchmarks.quality.style import FAMILIES, label

BARS = 0.005  # of fp32, of the bars by task
PLOTS = {
    "kl": "KL to the fine-tuned model",
    "adr": "Accuracy lost",
    "agreement": "Answers that differ",
    "accuracy": "Accuracy",
    "loss": "Held-out loss",
}


def build(out: Path, suites: dict[str, list[dict]], theory: dict | None) -> tuple[str, dict]:
    """Draws every plot into ``out``.  Returns the page and the figures it shows, as JSON."""
    compared = {suite: comparable(rows) for suite, rows in suites.items()}
    means = {suite: cells_of(rows) for suite, (rows, _) in compared.items()}
    against = {suite: ratios.ratios(rows, means[suite]) for suite, (rows, _) in compared.items()}
    parts, figures = [], {}
    if ratios.draw(against, out / "ratios"):
        parts.append(image("ratios", "KL over the best peer's at equal bytes", RATIOS))
    if plots.headline(means, out / "headline"):
        parts.append(
            image(
                "headline",
                "KL against bytes",
                "Kullback-Leibler divergence of the answers from the "
                "fine-tuned model's, mean over fine-tunes, against the bytes one fine-tune takes.",
            )
        )
    for suite, (rows, left) in compared.items():
        parts.append(_suite(out, suite, rows, means[suite], left))
        figures[suite] = {
            "cells": means[suite],
            "relative": targets.relative(means[suite]),
            "ratios": ratios.as_json(against[suite]),
            "checks": [vars(check) | {"verdict": check.verdict} for check in targets.checks(means[suite])],
        }
    if theory:
        parts.append(theory_page.section(out, theory))
        figures["theory"] = theory_page.figures(theory)
    contents = " · ".join(
        f'<a href="#{slug(name)}">{html.escape(name)}</a>'
        for name in [*suites, *(["theory"] if theory else []), "method"]
    )
    return PAGE.format(contents=contents, body="\n".join(parts), method=METHOD.format(families=_families())), figures


# --- a suite -----------------------------------------------------------------------------------------------------


def _suite(out: Path, suite: str, rows: list[dict], cells: list[dict], left: list[str]) -> str:
    tasks, seeds = sorted({row["task"] for row in rows}), sorted({row["seed"] for row in rows})
    samples = max((row.get("samples", 0) for row in rows), default=0)
    parts = [
        f'<h2 id="{slug(suite)}">{html.escape(suite.capitalize())}</h2>',
        f"<p>{len(tasks)} task{'s' * (len(tasks) > 1)} ({html.escape(', '.join(tasks))}), "
        f"{len(seeds)} seed{'s' * (len(seeds) > 1)} of the fine-tunes"
        + (f", at most {samples} test samples a task.</p>" if samples else ".</p>"),
    ]
    if left:
        parts.append(f"<p class=note>Left out, since not measured on all of these: {html.escape('; '.join(left))}.</p>")
    parts += ["<h3>Targets</h3>", _checks(targets.checks(cells)), "<h3>Frontier</h3>"]
    shown = [(m, title) for m, title in PLOTS.items() if plots.frontier(cells, m, out / f"{slug(suite)}-{m}")]
    parts += [image(f"{slug(suite)}-{m}", title) for m, title in shown[:1]]
    parts.append('<div class="two">' + "".join(image(f"{slug(suite)}-{m}", title) for m, title in shown[1:]) + "</div>")
    parts += ["<h3>KL relative to the best peer at equal bytes</h3>", _relative(targets.relative(cells))]
    if plots.by_task(rows, cells, out / f"{slug(suite)}-tasks", BARS):
        parts += [
            "<h3>Task by task</h3>",
            image(
                f"{slug(suite)}-tasks",
                "KL of every task",
                "This project's methods, the peers that are best there in the mean, "
                "and the paper's; each between its own sizes, by interpolation.",
            ),
        ]
    parts.append(f"<details><summary>All figures</summary>{_table(cells)}</details>")
    return "\n".join(parts)


def _checks(checks: list[targets.Check]) -> str:
    rows = [
        (html.escape(label(c.method)), html.escape(c.target), f"<b>{c.verdict}</b>", html.escape(c.figures))
        for c in checks
    ]
    kinds = ["met" if c.met and c.complete else "open" for c in checks]
    return table(("method", "target", "", "figures"), rows, "words", kinds)


def _relative(compared: list[dict]) -> str:
    head = ("method", "% of fp32", "KL", "best peer", "its KL", "ratio", "paper's DTS", "ratio")
    rows = [
        (
            html.escape(label(row["method"])),
            f"{100 * row['share']:.3f}",
            kl_text(row["kl"]),
            html.escape(label(row["best_peer"])) if row["best_peer"] else "none so small",
            kl_text(row["peer_kl"]),
            ratio_text(row["ratio"]),
            kl_text(row["paper_kl"]),
            ratio_text(row["paper_ratio"]),
        )
        for row in compared
    ]
    return table(head, rows) + INTERPOLATED


RATIOS = """This project's KL over that of the peer, named above, which is best at those bytes in the mean.  A dot is
one fine-tune, of one task and seed; the line is the ratio of the means over them.  Solid, as good as that peer; dashed,
half its KL."""

INTERPOLATED = """<p class=note>Peers between their own sizes: KL interpolated linearly in its logarithm over the
logarithm of the bytes; beyond a peer's largest size, its value there; below its smallest, nothing.</p>"""

COLUMNS = {  # heading: (the measure it needs, how a cell shows it)
    "method": ("method", lambda c: html.escape(label(c["method"]))),
    "% of fp32": ("share", lambda c: f"{100 * c['share']:.3f}"),
    "as its paper counts": ("published_share", lambda c: f"{100 * c['published_share']:.3f}"),
    "shared by all tasks, %": ("shared", lambda c: f"{100 * c['shared']:.0f}" if c["shared"] else ""),
    "accuracy %": ("accuracy", lambda c: f"{100 * c['accuracy']:.2f}"),
    "drop %": ("adr", lambda c: f"{100 * c['adr']:.2f}"),
    "worst drop %": ("worst_adr", lambda c: f"{100 * c['worst_adr']:.2f}"),
    "loss": ("loss", lambda c: f"{c['loss']:.4f}"),
    "agreement %": ("agreement", lambda c: f"{100 * c['agreement']:.2f}"),
    "KL": ("kl", lambda c: kl_text(c["kl"]) + (f" ± {kl_text(c['kl_deviation'])}" if c["kl_deviation"] else "")),
    "worst KL": ("worst_kl", lambda c: f"{c['worst_kl']:.4f}"),
    "error²": ("squared_error", lambda c: f"{c['squared_error']:.3f}"),
    "seconds": ("seconds", lambda c: f"{c['seconds']:.1f}"),
    "runs": ("runs", lambda c: str(c["runs"])),
}


def _table(cells: list[dict]) -> str:
    columns = {name: column for name, column in COLUMNS.items() if any(column[0] in cell for cell in cells)}
    rows = [[show(cell) if needs in cell else "" for needs, show in columns.values()] for cell in cells]
    return table(list(columns), rows, kinds=["" if cell["method"] in PEERS else "ours" for cell in cells])


# --- the page ----------------------------------------------------------------------------------------------------


def _families() -> str:
    shown = []
    for name, (colour, methods) in FAMILIES.items():
        members = f": {', '.join(map(label, methods))}" if methods else ""
        shown.append(f'<b style="color:{colour}">{html.escape(name)}</b>{members}')
    return "; ".join(shown)


METHOD = """<h2 id="method">How it was measured</h2>
<p>Each method at several sizes, in % of the compressed matrices in fp32; means over tasks, seeds and draws of a
method's randomness, against the fine-tuned model.  Biases, norms and heads are exact for every method and not counted,
except in rows of whole adapter folders, which count every byte.  Peers are re-implemented with their published
settings; their file headers, and masks that a seed regenerates, are counted as free.  A method is measured at the sizes
it can have; EMR, TALL-mask and RTVQ keep a vector of all tasks on top.  Methods larger than 12 % of fp32 are in the
tables only.</p>
<p>Families, by colour: {families}.</p>
<p>Made by <code>python -m benchmarks.quality.report --results benchmarks/results/quality --out out/</code> from the
rows that <code>dts bench quality --suite text</code>, <code>images</code> and <code>language</code> and
<code>python -m benchmarks.quality.text_all</code> measure, and from <code>python -m benchmarks.quality.theory</code>.
The figures as JSON: <a href="figures.json">figures.json</a>.</p>"""

PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>DTS: quality for the bytes</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 70em; margin: 2em auto; padding: 0 1em }}
figure {{ margin: 1em 0 }} figure img {{ width: 100% }} figure.narrow img {{ max-width: 44em }}
figcaption, .note {{ color: #555; font-size: .9em }}
.two {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(30em, 1fr)); gap: 1em }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .92em; display: block;
  overflow-x: auto }}
td, th {{ padding: .2em .8em; text-align: right; border-bottom: 1px solid #ddd; vertical-align: top }}
td:first-child, th:first-child, table.words td, table.words th {{ text-align: left }}
.ours {{ background: #fdf1e8; font-weight: bold }} td b {{ white-space: nowrap }}
.met b {{ color: #00694c }} .open b {{ color: #8a3b00 }}
summary {{ cursor: pointer; margin: 1em 0 }}
</style>
<h1>Quality for the bytes</h1>
<p>One base model, many full fine-tunes, each stored as a small difference: how much of the fine-tuned model is left at
every size, beside other methods.</p>
<p>{contents}</p>
{body}
{method}
</html>
"""
