"""A suite's plots: every measure against bytes, KL by task, and the headline over suites."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from statistics import mean

from benchmarks.quality.rows import at, line
from benchmarks.quality.style import (
    end_labels,
    figure,
    grid,
    label,
    percent_axis,
    plain_numbers,
    save,
    save_small,
    style,
)
from benchmarks.quality.targets import BYTES, best_peer, ours, palette, peers

LARGEST = 0.12  # of fp32; larger methods are in the table only
FLOOR = 1e-6
AT_LEFT = ("axes fraction", "data")


def _kl(axes, shown):
    axes.set(yscale="log", ylabel="KL to the fine-tuned model, nats (mean)")
    plain_numbers(axes.yaxis)
    return {m: [(100 * x, max(y, FLOOR)) for x, y in line(shown, m)] for m in _methods(shown)}


def _disagreement(axes, shown):
    axes.set(yscale="log", ylabel="answers unlike the fine-tuned model's, %")
    plain_numbers(axes.yaxis)
    least = 0.5 * min((1 - c["agreement"] for c in shown if c["agreement"] < 1), default=1e-3)
    axes.axhline(100 * least, color="0.5", linewidth=0.8, linestyle=":")
    axes.annotate("none", (0.005, 100 * least), xycoords=AT_LEFT, fontsize=8, va="bottom")
    return {m: [(100 * x, 100 * max(1 - y, least)) for x, y in line(shown, m, "agreement")] for m in _methods(shown)}


def _drop(axes, shown):
    axes.set_yscale("symlog", linthresh=0.1, linscale=0.6)
    axes.set(ylabel="accuracy lost, % of the fine-tuned model's (mean)")
    axes.axhline(0, color="black", linewidth=0.8)
    axes.axhspan(-1e9, 0.1, color="#33A02C", alpha=0.06)
    ticks = [-10, -1, -0.1, 0, 0.1, 1, 10, 100]
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    return {m: [(100 * x, 100 * y) for x, y in line(shown, m, "adr")] for m in _methods(shown)}


def _accuracy(axes, shown):
    finetuned = 100 * mean(c["finetuned_accuracy"] for c in shown)
    axes.axhline(finetuned, color="black", linewidth=0.8, linestyle=":")
    axes.annotate("fine-tuned", (0.005, finetuned), xycoords=AT_LEFT, fontsize=8, va="bottom")
    axes.set(ylabel="accuracy, % (mean)")
    return {m: [(100 * x, 100 * y) for x, y in line(shown, m, "accuracy")] for m in _methods(shown)}


def _loss(axes, shown):
    finetuned = [c["finetuned_loss"] for c in shown if "finetuned_loss" in c]
    if finetuned:
        axes.axhline(mean(finetuned), color="black", linewidth=0.8, linestyle=":")
        axes.annotate("fine-tuned", (0.005, mean(finetuned)), xycoords=AT_LEFT, fontsize=8, va="bottom")
    axes.set(ylabel="held-out loss, nats (mean)")
    return {m: [(100 * x, y) for x, y in line(shown, m, "loss")] for m in _methods(shown)}


MEASURES = {"kl": _kl, "adr": _drop, "agreement": _disagreement, "accuracy": _accuracy, "loss": _loss}
ROOM = {"accuracy": 12.0, "loss": 1.0}  # shown below (accuracy) or above (loss) our methods' best


def frontier(cells: list[dict], measure: str, path: Path) -> Path | None:
    """``measure`` against bytes, a line a method, a point where a method has one size.  None if nobody has it."""
    shown = [c for c in cells if measure in c and c["share"] <= LARGEST]
    if not shown:
        return None
    made, axes = figure(9.6, 5.8)
    axes.set(xscale="log", xlabel=BYTES)
    lines = MEASURES[measure](axes, shown)
    _lines(axes, lines, palette(cells))
    values = [y for points in lines.values() for _, y in points]
    if measure == "accuracy":
        best = max(values)
        axes.set_ylim(max(min(values) - 1, best - ROOM["accuracy"]), best + 1)
    elif measure == "loss":
        best = min(values)
        axes.set_ylim(best - 0.05, min(max(values) + 0.05, best + ROOM["loss"]))
    elif measure == "adr":
        axes.set_ylim(min(-0.3, 1.5 * min(values)), max(1.0, 1.3 * max(values)))
    made.draw_without_rendering()  # the layout decides the heights that labels go by
    _labels(axes, lines, palette(cells))
    return save(made, path)


def _methods(cells: Iterable[dict]) -> list[str]:
    return list(dict.fromkeys(c["method"] for c in cells))


def _lines(axes, lines: dict[str, list[tuple[float, float]]], own: list[str]) -> None:
    xs = [x for points in lines.values() for x, _ in points]
    axes.set_xlim(0.85 * min(xs), 1.12 * max(xs))
    percent_axis(axes.xaxis)
    axes.grid(color="#e4e4e4", linewidth=0.7)
    axes.set_axisbelow(True)
    for method, points in lines.items():
        axes.plot(*zip(*points), **style(method, own))


def _labels(axes, lines: dict[str, list[tuple[float, float]]], own: list[str], size: float = 9.5) -> None:
    end_labels(axes, {label(m): (*points[-1], style(m, own)["color"], m in own) for m, points in lines.items()}, size)


def by_task(rows: list[dict], cells: list[dict], path: Path, share: float, most: int = 4) -> Path | None:
    """KL of each task at ``share`` of fp32, between a method's sizes as `rows.at` says: ours, the paper's, and the
    peers that are best in the mean there."""
    own = [m for m in ours(cells) if at(line(cells, m), share) is not None]
    means = {m: kl for m in peers(cells) if (kl := at(line(cells, m), share)) is not None}
    chosen = sorted(means, key=means.get)[:most]
    if "dts paper" in means and "dts paper" not in chosen:
        chosen = [*chosen[: most - 1], "dts paper"]
    methods = [*own, *chosen]
    if not methods:
        return None
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    points = {(m, t): _task_line(rows, m, t) for m in methods for t in tasks}
    values = {key: at(line_, share) for key, line_ in points.items()}
    tasks.sort(key=lambda t: values.get((own[0] if own else methods[0], t)) or 0)
    inches = max(7.5, 2.2 + 0.95 * len(tasks))
    made, axes = figure(inches, 4.8)
    width = 0.84 / len(methods)
    for i, method in enumerate(methods):
        heights = [max(values[method, t], FLOOR) if values[method, t] is not None else math.nan for t in tasks]
        look = style(method, palette(cells))
        axes.bar(
            [x + (i + 0.5) * width for x in range(len(tasks))],
            heights,
            0.92 * width,
            label=label(method),
            color=look["color"],
            hatch=None if method in own else HATCHES[chosen.index(method) % len(HATCHES)],
            edgecolor="white",
            linewidth=0,
            alpha=1 if method in own else 0.75,
        )
    shown = [value for value in values.values() if value]
    axes.set(yscale="log", ylabel=f"KL at {100 * share:g} % of fp32, nats")
    axes.set_ylim(10 ** math.floor(math.log10(max(FLOOR, 0.8 * min(shown, default=1)))), 1.3 * max(shown, default=1))
    plain_numbers(axes.yaxis)
    axes.set_xticks([x + 0.42 for x in range(len(tasks))], tasks, rotation=25, ha="right")
    axes.tick_params(axis="x", length=0)
    axes.grid(axis="y", color="#e4e4e4", linewidth=0.7)
    axes.set_axisbelow(True)
    made.legend(fontsize=9.5, ncols=int(inches / 1.8), frameon=False, loc="outside upper center")
    return save(made, path)


HATCHES = (None, "///", "...", "xxx")


def _task_line(rows: list[dict], method: str, task: str) -> list[tuple[float, float]]:
    sizes: dict[float | None, list[dict]] = {}
    for row in rows:
        if (row["method"], row["task"]) == (method, task):
            sizes.setdefault(row["size"], []).append(row)
    return sorted((mean(r["share"] for r in cell), mean(r["kl"] for r in cell)) for cell in sizes.values())


def headline(suites: dict[str, list[dict]], path: Path, most: int = 5) -> Path | None:
    """KL against bytes, a panel a suite: ours, the paper's, and the peers that are best at some size.

    The PNG takes at most 100 KB."""
    panels = {name: cells for name, cells in suites.items() if ours(cells)}
    if not panels:
        return None
    made, all_axes = grid(len(panels), 5.6, 4.3)
    drawn = []
    for axes, (name, cells) in zip(all_axes, panels.items()):
        chosen = [*ours(cells), *_rivals(cells, most)]
        small = {m: [(100 * x, max(y, FLOOR)) for x, y in line(cells, m) if x <= LARGEST] for m in chosen}
        drawn.append((axes, {m: points for m, points in small.items() if points}, palette(cells)))
        axes.set(xscale="log", yscale="log", xlabel=BYTES, ylabel="KL to the fine-tuned model, nats")
        plain_numbers(axes.yaxis)
        _lines(*drawn[-1])
        fine_tunes = max(c["fine_tunes"] for c in cells)
        axes.set_title(f"{name}: mean of {fine_tunes} fine-tune{'s' if fine_tunes > 1 else ''}", loc="left")
    made.draw_without_rendering()  # the layout decides the heights that labels go by
    for axes, lines, own in drawn:
        _labels(axes, lines, own, 10)
    return save_small(made, path)


def _rivals(cells: list[dict], most: int) -> list[str]:
    """The paper's DTS, UltraDelta, and the peers that are best at one of our sizes, at most ``most``."""
    best = [found[0] for m in ours(cells) for share, _ in line(cells, m) if (found := best_peer(cells, share))]
    wanted = ["dts paper", "ultradelta", *sorted(set(best), key=lambda m: -best.count(m)), "bitdelta"]
    present = peers(cells)
    return [m for m in dict.fromkeys(wanted) if m in present][:most]
