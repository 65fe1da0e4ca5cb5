"""How every plot looks: one colour a family of methods, line styles and markers within it, labels that do not overlap.

The colours are of Okabe and Ito's and Tol's palettes, chosen so that colour-blind people can tell any two apart."""

from __future__ import annotations

import math
from pathlib import Path

INK = "#222222"
OURS = ("#D55E00", "#882255", "#8A4B08")  # this project's methods, in order
FAMILIES = {  # name: (colour, methods in the order of their line styles)
    "this project": (OURS[0], ()),
    "the paper's DTS and its ablations": ("#1a1a1a", ("dts paper", "dts 8 groups", "dts 2 groups", "dts no scaling")),
    "truncated SVD": ("#56B4E9", ("svd 4 bit", "svd 8 bit", "svd fp16", "tsv-compress")),
    "singular vectors, each in its own bits": ("#0072B2", ("delta-come", "prinmix", "impart-qt", "impart")),
    "dropped elements": ("#33A02C", ("ultradelta", "drop 4 bit", "dare", "t-switch")),
    "quantised": ("#CC79A7", ("bitdelta", "tvq 2 bit", "tvq 3 bit", "tvq 4 bit", "rtvq")),
    "one vector, masks": ("#7A7A7A", ("emr", "tall-mask")),
}
LINES = ("-", (0, (5, 1.5)), (0, (3, 1.2, 1, 1.2)), (0, (1, 1.2)))
MARKERS = ("o", "s", "^", "D", "v")
LABELS = {
    "dts paper": "DTS (paper)",
    "dts 8 groups": "DTS, 8 groups",
    "dts 2 groups": "DTS, 2 groups",
    "dts no scaling": "DTS, no scaling",
    "delta-come": "Delta-CoMe",
    "prinmix": "PrinMix",
    "impart": "ImPart",
    "impart-qt": "ImPart-Qt",
    "svd fp16": "SVD in fp16",
    "svd 8 bit": "SVD in 8 bits",
    "svd 4 bit": "SVD in 4 bits",
    "tsv-compress": "TSV-Compress",
    "ultradelta": "UltraDelta",
    "drop 4 bit": "drop + 4 bit",
    "dare": "DARE",
    "t-switch": "T-Switch",
    "bitdelta": "BitDelta",
    "tvq 2 bit": "TVQ 2 bit",
    "tvq 3 bit": "TVQ 3 bit",
    "tvq 4 bit": "TVQ 4 bit",
    "rtvq": "RTVQ",
    "emr": "EMR",
    "tall-mask": "TALL-mask",
}


def label(method: str) -> str:
    """As it is known in print; this project's methods are named as such."""
    return LABELS.get(method) or f"ours: {method}"


def family(method: str) -> str:
    return next((name for name, (_, methods) in FAMILIES.items() if method in methods), "this project")


def style(method: str, ours: list[str]) -> dict:
    """Keywords of `Axes.plot`."""
    name = family(method)
    if name == "this project":
        i = ours.index(method) if method in ours else 0
        return {
            "color": OURS[i % len(OURS)],
            "linestyle": LINES[i // len(OURS) % len(LINES)],
            "linewidth": 2.8,
            "marker": MARKERS[i % len(MARKERS)],
            "markersize": 6,
            "zorder": 5,
        }
    colour, methods = FAMILIES[name]
    i = methods.index(method)
    return {
        "color": colour,
        "linestyle": LINES[i % len(LINES)],
        "marker": MARKERS[i % len(MARKERS)],
        "markersize": 4,
        "linewidth": 1.9 if i == 0 else 1.3,
        "zorder": 3,
    }


def figure(width: float, height: float, columns: int = 1, rows: int = 1, **how):
    """(figure, axes); without a global state or a display."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with rc_context(SETTINGS):
        made = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(made)
        return made, made.subplots(rows, columns, **how)


def grid(panels: int, width: float, height: float):
    """(figure, axes of each panel): up to three beside each other, more in two lines."""
    columns = panels if panels <= 3 else math.ceil(panels / 2)
    lines = math.ceil(panels / columns)
    made, axes = figure(width * columns + 0.5, height * lines, columns, lines, squeeze=False)
    for unused in axes.flat[panels:]:
        unused.set_visible(False)
    return made, axes.flat[:panels]


SETTINGS = {
    "font.size": 11,
    "axes.labelsize": 11,
    "axes.titlesize": 12,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.hashsalt": "dts",
}


def save(made, path: Path, dpi: int = 110) -> Path:
    """PNG and SVG beside each other; the same figure gives the same bytes."""
    _picture(made, path.with_suffix(".png"), dpi=dpi)
    return _picture(made, path.with_suffix(".svg"), metadata={"Date": None})


def _picture(made, path: Path, **how) -> Path:
    from matplotlib import rc_context

    with rc_context(SETTINGS):
        made.savefig(path, **how)
    return path


def save_small(made, path: Path, most: int = 100_000) -> Path:
    """As `save`, the PNG in 256 colours and at the best of some resolutions that takes at most ``most`` bytes."""
    from PIL import Image

    vectors = save(made, path, 130)
    for dpi in (130, 110, 90, 70, 50):
        if dpi != 130:
            _picture(made, path.with_suffix(".png"), dpi=dpi)
        with Image.open(path.with_suffix(".png")) as drawn:
            drawn.convert("RGB").quantize(256).save(path.with_suffix(".png"), optimize=True)
        if path.with_suffix(".png").stat().st_size <= most:
            break
    return vectors


def percent_axis(axis, ticks=(0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100)) -> None:
    """A logarithmic axis of per cent with plain numbers."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    axis.set_major_locator(FixedLocator(ticks))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())


def plain_numbers(axis) -> None:
    """A logarithmic axis with decimals for powers of ten."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.6f}".rstrip("0").rstrip(".")))
    axis.set_minor_formatter(NullFormatter())


def end_labels(axes, ends: dict[str, tuple[float, float, str, bool]], size: float = 9.5) -> None:
    """Names right of the axes, each level with its line's end as far as the others leave room, and a thin lead to it.

    ends: {text: (x, y, colour, bold)} in data coordinates; limits and scales of ``axes`` must be final.
    """
    low, high = axes.transAxes.inverted().transform(axes.transData.transform([(x, y) for x, y, *_ in ends.values()])).T
    height = axes.get_window_extent().height / axes.figure.dpi * 72  # points
    gap = 1.28 * size / height
    heights = spread([min(1.0, max(0.0, y)) for y in high], gap)
    for (text, (_, _, colour, bold)), x, y, place in zip(ends.items(), low, high, heights):
        axes.annotate(
            text,
            (min(1.0, x), min(1.0, max(0.0, y))),
            (1.045, place),
            "axes fraction",
            "axes fraction",
            color=colour,
            va="center",
            fontsize=size,
            fontweight="bold" if bold else "normal",
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.6, "alpha": 0.55, "relpos": (0, 0.5)},
        )


def spread(places: list[float], gap: float) -> list[float]:
    """Each place moved as little as makes neighbours ``gap`` apart, the order kept, inside 0 to 1 if they fit.

    The least squares solution, by pooling neighbours that would overlap."""
    order = sorted(range(len(places)), key=lambda i: places[i])
    blocks: list[list[float]] = []  # [sum of what the places of its members say of rank 0's, count]
    for rank, i in enumerate(order):
        blocks.append([places[i] - rank * gap, 1])
        while len(blocks) > 1 and blocks[-2][0] / blocks[-2][1] > blocks[-1][0] / blocks[-1][1]:
            total, count = blocks.pop()
            blocks[-1][0] += total
            blocks[-1][1] += count
    room = max(0.0, 1 - (len(places) - 1) * gap)
    firsts = [min(max(total / count, 0.0), room) for total, count in blocks for _ in range(count)]
    out = [0.0] * len(places)
    for rank, (i, first) in enumerate(zip(order, firsts)):
        out[i] = first + rank * gap
    return out
