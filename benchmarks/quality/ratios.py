"""The report's main figure: our KL over the best peer's at equal bytes, a dot a fine-tune."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

from benchmarks.quality.rows import at, line
from benchmarks.quality.style import INK, grid, label, percent_axis, save_small, style
from benchmarks.quality.targets import BYTES, RATIO, SIZES, VARIANTS, best_peer, ours, palette

LEVELS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100)  # ticks
FILLED = 0.7  # of the distance between two sizes: what the dots of one size take


@dataclass(frozen=True)
class Ratio:
    """One of our methods at one share of fp32, against the peer that is best there in the mean over the fine-tunes.

    ratio: of the two means; dots: {(task, seed): ratio there}, which the ratio of the means lies between.
    """

    method: str
    share: float
    peer: str
    ratio: float
    dots: dict[tuple[str, int], float]


def ratios(rows: list[dict], cells: list[dict]) -> list[Ratio]:
    """Every method at every share that one of ours was asked for and some peer was measured at, between sizes as
    `rows.at` says."""
    methods = [method for method in ours(cells) if method not in VARIANTS]
    shares = sorted({cell["size"] for cell in cells if cell["method"] in methods and cell["size"]}) or SIZES
    found = []
    for method in methods:
        own = line(cells, method)
        for share in shares:
            kl, best = at(own, share), best_peer(cells, share)
            if kl is None or share > 1.05 * own[-1][0] or best is None or not best[1]:
                continue
            peer, peer_kl = best
            mine, theirs = (by_fine_tune(rows, name, share) for name in (method, peer))
            dots = {one: mine[one] / theirs[one] for one in mine if theirs.get(one)}
            found.append(Ratio(method, share, peer, kl / peer_kl, dots))
    return found


def by_fine_tune(rows: list[dict], method: str, share: float) -> dict[tuple[str, int], float]:
    """KL of each (task, seed) at a share, means over draws."""
    sizes: dict[tuple[str, int], dict[float | None, list[dict]]] = {}
    for row in rows:
        if row["method"] == method:
            sizes.setdefault((row["task"], row["seed"]), {}).setdefault(row["size"], []).append(row)
    found = {}
    for one, cells in sizes.items():
        points = sorted((mean(r["share"] for r in cell), mean(r["kl"] for r in cell)) for cell in cells.values())
        # a fine-tune of fewer bytes than the mean still has the mean's smallest size
        if (kl := at(points, max(share, points[0][0]))) is not None:
            found[one] = kl
    return found


def as_json(found: list[Ratio]) -> list[dict]:
    return [
        {"method": r.method, "share": r.share, "peer": r.peer, "ratio": r.ratio}
        | {"dots": [{"task": task, "seed": seed, "ratio": ratio} for (task, seed), ratio in sorted(r.dots.items())]}
        for r in found
    ]


def draw(suites: dict[str, list[Ratio]], path: Path) -> Path | None:
    """A panel a suite: every fine-tune's ratio a dot, the ratio of the means a line; 1 and the aim marked; above each
    size the peer that is best there.  None if nothing can be compared.  The PNG takes at most 100 KB."""
    panels = {name: found for name, found in suites.items() if found}
    if not panels:
        return None
    made, all_axes = grid(len(panels), 5.4, 4.9)
    own = palette([{"method": r.method} for found in panels.values() for r in found])
    for axes, (name, found) in zip(all_axes, panels.items()):
        _panel(axes, name, found, own)
    return save_small(made, path)


def _panel(axes, name: str, found: list[Ratio], own: list[str]) -> None:
    methods = list(dict.fromkeys(r.method for r in found))
    shares = sorted({r.share for r in found})
    axes.set(xscale="log", yscale="log", xlabel=BYTES, ylabel="our KL / the best peer's")
    axes.axhline(1, color=INK, linewidth=1.1, zorder=1)
    axes.axhline(RATIO, color=INK, linewidth=1.1, linestyle=(0, (4, 2)), zorder=1)
    axes.grid(color="#ececec", linewidth=0.7)
    axes.set_axisbelow(True)
    apart = min((math.log10(b / a) for a, b in zip(shares, shares[1:])), default=0.3)
    width = FILLED * min(0.3, apart) / len(methods)
    for i, method in enumerate(methods):
        look = style(method, own)
        side = (i - (len(methods) - 1) / 2) * width
        mine = [r for r in found if r.method == method]
        for r in mine:
            heights = sorted(r.dots.values())
            places = [100 * r.share * 10 ** (side + 0.8 * width * step) for step in _fan(len(heights))]
            axes.scatter(places, heights, s=13, color=look["color"], marker=look["marker"], alpha=0.4, linewidths=0)
        axes.plot([100 * r.share * 10**side for r in mine], [r.ratio for r in mine], label=label(method), **look)
    values = [value for r in found for value in (r.ratio, *r.dots.values()) if value > 0] + [RATIO, 1]
    axes.set_ylim(0.8 * min(values), 1.25 * max(values))
    axes.set_xlim(100 * shares[0] / 1.35, 100 * shares[-1] * 1.35)
    percent_axis(axes.xaxis, [100 * share for share in shares])
    _levels(axes.yaxis)
    fine_tunes = max(len(r.dots) for r in found)
    axes.set_title(f"{name}: {fine_tunes} fine-tune{'s' if fine_tunes > 1 else ''}", loc="left", pad=58)
    for share in shares:
        peer = next(r.peer for r in found if r.share == share)
        axes.annotate(
            label(peer), (100 * share, 1.015), xycoords=("data", "axes fraction"), rotation=35, fontsize=9, va="bottom"
        )
    axes.legend(fontsize=9.5, frameon=False, loc="best")


def _fan(number: int) -> list[float]:
    """Places from -.5 to .5 that keep dots of like height apart: every other one left and right of the middle."""
    return [(i + 1) // 2 * (-1) ** i / max(1, number - 1) for i in range(number)]


def _levels(axis) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    axis.set_major_locator(FixedLocator(LEVELS))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())
