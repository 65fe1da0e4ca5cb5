"""The figures beside the published ones."""

from __future__ import annotations

from statistics import fmean

from benchmarks.real.measure import BASE, FINETUNE
from benchmarks.real.scores import PUBLISHED, PUBLISHED_SHARE, SCORES

SHARE = f"{100 * PUBLISHED_SHARE:.4g} % of fp32"
ORIGIN = f"published: arXiv 2504.13237, its quantised methods at {SHARE}; nothing here measured them"


def table(rows: list[dict]) -> str:
    """A line for whatever was published or measured, a column a score; "not run" where nothing was, no mean then."""
    names = list(SCORES)
    lines = {what: dict(zip(names, values)) for what, values in PUBLISHED.items()}
    for row in rows:
        label = f"{row['what']} (here)" if row["what"] in (BASE, FINETUNE) else f"this project, {row['what']}"
        lines.setdefault(label, {})[row["score"]] = row["value"]
    width = max(map(len, lines))
    out = [f"{'':{width}}  " + "  ".join(f"{name:>{max(8, len(name))}}" for name in [*names, "mean"])]
    for label, values in lines.items():
        found = [values.get(name) for name in names]
        whole = [value for value in found if value is not None]
        mean = f"{fmean(whole):.2f}" if len(whole) == len(names) else "not run"
        shown = ["not run" if value is None else f"{value:.2f}" for value in found]
        cells = zip([*names, "mean"], [*shown, mean])
        out.append(f"{label:{width}}  " + "  ".join(f"{cell:>{max(8, len(name))}}" for name, cell in cells))
    short = sorted({row["rows"] for row in rows if row["limit"]})
    note = [f"only {', '.join(map(str, short))} rows of a benchmark: no figures to compare"] if short else []
    return "\n".join([*out, ORIGIN, *note])
