"""The report's section on predicted errors, from `benchmarks.quality.theory`'s file."""

from __future__ import annotations

import html
from pathlib import Path
from statistics import mean

from benchmarks.quality import theory_plots
from benchmarks.quality.markup import image, ratio_text, table


def figures(theory: dict) -> list[dict]:
    """What the table shows, as JSON."""
    return [
        {key: value for key, value in row.items() if key != "tensors"} | _ratios(row["tensors"])
        for row in theory["compared"]
    ]


def section(out: Path, theory: dict) -> str:
    parts = [
        '<h2 id="theory">Theory: the error before compressing</h2>',
        "<p><code>dts compress --dry-run</code> predicts the squared relative error from the singular values alone, "
        "with a lower bound that holds for every matrix and an upper one for singular vectors whose elements are close "
        "to normal (<code>dts/codec/spectrum.py</code>).  Measured: the same adapter, made.</p>",
        _compared(theory),
    ]
    if any(row["tensors"] for row in theory["compared"]):
        theory_plots.scatter(theory["compared"], out / "theory-matrices")
        parts.append(image("theory-matrices", "Predicted against measured error of every matrix", narrow=True))
    if theory["spectra"]:
        theory_plots.spectra(theory["spectra"], out / "theory-spectra")
        parts.append(
            image(
                "theory-spectra",
                "Spectra and errors",
                "Matrices of one fine-tune with the steepest, a middling and the flattest spectrum.",
            )
        )
    for chosen in theory["ranks"]:
        name = f"theory-ranks-{chosen['task']}"
        theory_plots.ranks(chosen, out / name)
        parts.append(image(name, f"Ranks of {chosen['task']}", narrow=True))
    matrices = "".join(_matrices(row) for row in theory["compared"] if row["tensors"])
    return "\n".join(parts) + f"<details><summary>Matrix by matrix</summary>{matrices}</details>"


def _ratios(tensors: list[list]) -> dict:
    """Predicted over measured by matrix: mean, least, most; how many are inside the bounds, of how many."""
    ratios = [t[4] / t[7] for t in tensors if t[7]]
    return {
        "ratio_mean": mean(ratios) if ratios else None,
        "ratio_least": min(ratios, default=None),
        "ratio_most": max(ratios, default=None),
        "matrices": len(tensors),
        "within_bounds": sum(t[5] * 0.999 <= t[7] <= t[6] * 1.001 for t in tensors),
    }


def _compared(theory: dict) -> str:
    head = (
        "fine-tune",
        "method",
        "% of fp32",
        "predicted",
        "bounds",
        "measured",
        "predicted / measured",
        "by matrix: mean",
        "least",
        "most",
        "within bounds",
    )
    rows = []
    for row in theory["compared"]:
        ratios = _ratios(row["tensors"])
        rows.append(
            (
                html.escape(row["task"]),
                row["method"],
                f"{100 * row['budget']:g}",
                f"{row['predicted']:.4f}",
                f"{row['lower']:.3f} to {row['upper']:.3f}",
                f"{row['measured']:.4f}",
                ratio_text(row["predicted"] / row["measured"] if row["measured"] else None),
                *(ratio_text(ratios[key]) for key in ("ratio_mean", "ratio_least", "ratio_most")),
                f"{ratios['within_bounds']} of {ratios['matrices']}",
            )
        )
    return table(head, rows)


def _matrices(row: dict) -> str:
    head = ("matrix", "shape", "rank", "norm", "predicted", "lower", "upper", "measured", "ratio")
    rows = [
        (
            html.escape(t[0]),
            " x ".join(map(str, t[1])),
            t[2],
            f"{t[3]:.3g}",
            *(f"{v:.4f}" for v in t[4:8]),
            ratio_text(t[4] / t[7] if t[7] else None),
        )
        for t in row["tensors"]
    ]
    title = f"{row['task']}, {row['method']}, {100 * row['budget']:g} %"
    return f"<h4>{html.escape(title)}</h4>{table(head, rows)}"
