"""Plots of `benchmarks.quality.theory`'s file: ranks by layer, spectra and errors, predicted against measured."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from benchmarks.quality.style import OURS, figure, plain_numbers, save
from dts.codec import error_bounds, predicted_error

COLOURS = {"residual": OURS[0], "paper": "#1a1a1a"}
MARKERS = {"residual": "o", "paper": "s"}
LAYER = re.compile(r"^(.*?)\.(\d+)\.(.*)$")


def by_layer(names: list[str]) -> tuple[list[str], list[str], dict[tuple[str, str], str]]:
    """(layers, kinds of matrix, {(layer, kind): name}); matrices outside of layers come under the layer "other"."""
    cells, layers, kinds = {}, [], []
    for name in names:
        match = LAYER.match(name)
        layer, kind = (match[2], match[3]) if match else ("other", name.split(".", 1)[-1])
        kind = kind.removesuffix(".weight")
        layers += [layer] if layer not in layers else []
        kinds += [kind] if kind not in kinds else []
        cells[layer, kind] = name
    layers.sort(key=lambda layer: (not layer.isdigit(), int(layer) if layer.isdigit() else 0))
    return layers, kinds, cells


def ranks(chosen: dict, path: Path) -> Path:
    """The ranks of one adapter: a column a layer, a row a kind of matrix; the colour is the share of the full rank."""
    layers, kinds, cells = by_layer(list(chosen["ranks"]))
    made, axes = figure(3.0 + 0.75 * len(layers), 1.5 + 0.42 * len(kinds))
    share = torch.full((len(kinds), len(layers)), float("nan"))
    for (layer, kind), name in cells.items():
        shape, rank = chosen["ranks"][name]
        x, y = layers.index(layer), kinds.index(kind)
        share[y, x] = rank / min(shape)
    image = axes.imshow(share.numpy(), cmap="YlOrBr", vmin=0, vmax=share.nan_to_num().max().item(), aspect="auto")
    for (layer, kind), name in cells.items():
        x, y = layers.index(layer), kinds.index(kind)
        dark = share[y, x] > 0.6 * share.nan_to_num().max()
        axes.text(x, y, str(chosen["ranks"][name][1]), ha="center", va="center", color="white" if dark else "black")
    axes.set_xticks(range(len(layers)), layers)
    axes.set_yticks(range(len(kinds)), kinds)
    axes.set(xlabel="layer", title=f"{chosen['task']} at {100 * chosen['budget']:g} %: ranks the budget chose")
    axes.tick_params(length=0)
    for side in axes.spines.values():
        side.set_visible(False)
    bar = made.colorbar(image, ax=axes, label="share of the full rank")
    bar.outline.set_visible(False)
    return save(made, path)


def spectra(rows: list[dict], path: Path) -> Path:
    """First the singular values of all; then a panel a matrix with predicted curves, bounds and measured points."""
    made, grid = figure(10, 3.9 * -(-(len(rows) + 1) // 2), 2, -(-(len(rows) + 1) // 2), squeeze=False)
    axes = grid.flatten()
    for unused in axes[len(rows) + 1 :]:
        unused.set_visible(False)
    for row, colour in zip(rows, ("#0072B2", "#33A02C", "#CC79A7", "#7A7A7A")):
        values = torch.tensor(row["singular_values"])
        axes[0].plot(
            range(1, len(values) + 1), values / values[0], color=colour, linewidth=2, label=_short(row["name"])
        )
    axes[0].set(xscale="log", yscale="log", xlabel="component", title="singular values, of the largest")
    axes[0].set_ylim(bottom=max(1e-4, 0.5 * min((min(r["singular_values"]) / max(r["singular_values"])) for r in rows)))
    axes[0].legend(frameon=False, fontsize=9.5, loc="lower left")
    for panel, row in zip(axes[1:], rows):
        values, shape = torch.tensor(row["singular_values"], dtype=torch.float64), row["shape"]
        at = sorted({max(1, round(len(values) * 0.005 * 1.07**i)) for i in range(79)})
        at = [k for k in at if k <= len(values)]
        lower, upper = error_bounds(values, at)
        panel.fill_between(at, lower, upper, color=COLOURS["residual"], alpha=0.13, linewidth=0, label="its bounds")
        for method in ("residual", "paper"):
            predicted = predicted_error(values, at, method, shape)
            panel.plot(at, predicted, color=COLOURS[method], linewidth=1.8, label=f"{method}, predicted")
            panel.plot(
                row["ranks"],
                row["measured"][method],
                MARKERS[method],
                color=COLOURS[method],
                markersize=7,
                markerfacecolor="white",
                markeredgewidth=1.8,
                label=f"{method}, measured",
            )
        panel.set(
            xscale="log",
            yscale="log",
            xlabel="rank",
            ylabel="squared relative error",
            title=f"{_short(row['name'])}, {shape[0]} x {shape[1]}",
        )
        panel.set_ylim(bottom=0.5 * min(row["measured"]["residual"]))
    axes[1].legend(frameon=False, fontsize=9.5, loc="lower left")
    for panel in axes[: len(rows) + 1]:
        plain_numbers(panel.xaxis)
        plain_numbers(panel.yaxis)
        panel.grid(color="#e4e4e4", linewidth=0.7)
        panel.set_axisbelow(True)
    return save(made, path)


def scatter(compared: list[dict], path: Path) -> Path:
    """Predicted against measured, a point a matrix; the band is 15 % either way."""
    made, axes = figure(6.6, 5.4)
    values = [v for row in compared for t in row["tensors"] for v in (t[4], t[7])]
    low, high = 0.7 * min(values), 1.4 * max(values)
    axes.fill_between([low, high], [0.85 * low, 0.85 * high], [1.15 * low, 1.15 * high], color="0.9", linewidth=0)
    axes.plot([low, high], [low, high], color="0.4", linewidth=1)
    for method in ("paper", "residual"):
        points = [(t[7], t[4]) for row in compared if row["method"] == method for t in row["tensors"]]
        if points:
            axes.plot(
                *zip(*points),
                MARKERS[method],
                color=COLOURS[method],
                markersize=4,
                alpha=0.5,
                label=method,
                markeredgewidth=0,
            )
    axes.set(
        xscale="log",
        yscale="log",
        xlim=(low, high),
        ylim=(low, high),
        xlabel="measured squared relative error",
        ylabel="predicted",
    )
    axes.legend(frameon=False, title="a point a matrix; band: 15 %", title_fontsize=9.5)
    return save(made, path)


def _short(name: str) -> str:
    """The last words of a tensor's name: layer and kind."""
    match = LAYER.match(name.removesuffix(".weight"))
    if not match:
        return name.removesuffix(".weight")
    kind = match[3].replace("attention.self.", "").replace(".dense", "")
    return f"layer {match[2]}, {kind}"
