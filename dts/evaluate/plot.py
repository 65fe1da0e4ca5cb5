"""Agreement and KL of each adapter against its bytes, with the base and the fine-tune."""

from __future__ import annotations

from pathlib import Path

from dts.evaluate.words import interval

ADAPTER, BASE, FINETUNE = "#0072B2", "#D55E00", "#009E73"  # Okabe and Ito: told apart by the colour-blind too


def check_place(path: Path) -> Path:
    """The path, where a plot can be written; raises ValueError or OSError that says why it cannot."""
    from matplotlib.backend_bases import FigureCanvasBase

    kinds = FigureCanvasBase.get_supported_filetypes()
    if path.suffix[1:].lower() not in kinds:
        raise ValueError(f"{path} ends in {path.suffix or 'nothing'}: a plot ends in {', '.join(sorted(kinds))}")
    if path.is_dir() or not path.parent.is_dir():
        where = "is a folder" if path.is_dir() else f"lies in {path.parent}, and there is no such folder"
        raise ValueError(f"{path} {where}: name a file in a folder that is there")
    return path


def plot(report: dict, path: Path) -> None:
    """Raises ImportError naming the package where matplotlib is absent."""
    try:
        import matplotlib
    except ImportError:
        raise ImportError("a plot needs the package matplotlib: pip install 'dts-merge[plot]'") from None
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    made = sorted((row for row in report["models"] if row["what"] == "adapter"), key=lambda row: row["bytes"])
    base = next(row for row in report["models"] if row["what"] == "base")
    x = [100 * row["amr"] for row in made]
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.4), layout="constrained")
    agreement = [100 * row["agreement"] for row in made]
    sure = [interval(row["agreement"], row["places"]) for row in made]
    bars = [
        [max(0.0, a - 100 * low) for a, (low, _) in zip(agreement, sure)],
        [max(0.0, 100 * high - a) for a, (_, high) in zip(agreement, sure)],  # 0 at 100 %, but for rounding
    ]
    left.errorbar(x, agreement, yerr=bars, fmt="o-", color=ADAPTER, capsize=3, label="adapter, with its 95 % interval")
    left.axhline(100, color=FINETUNE, linestyle="--", label="the fine-tune itself")
    right.plot(x, [max(row["kl"], 1e-9) for row in made], "o-", color=ADAPTER, label="adapter")
    if base["agreement"] is not None:
        left.axhline(100 * base["agreement"], color=BASE, linestyle=":", label="the base")
        right.axhline(max(base["kl"], 1e-9), color=BASE, linestyle=":", label="the base")
    for axes, values in ((left, agreement), (right, [max(row["kl"], 1e-9) for row in made])):
        for row, across, up in zip(made, x, values):
            axes.annotate(row["name"], (across, up), textcoords="offset points", xytext=(5, 5), fontsize=8)
        axes.margins(x=0.15)
        axes.set_xlabel("size of the adapter, % of the base in fp32")
        axes.grid(alpha=0.3)
        axes.legend()
    left.set(ylabel="% of answers that are the fine-tune's", title="Agreement: higher is better")
    right.set(yscale="log", ylabel="KL to the fine-tune, nats", title="Distance of the answers: lower is better")
    inputs = report["inputs"]
    figure.suptitle(f"{inputs['count']:,} {'made-up inputs' if inputs['made_up'] else 'inputs of ' + inputs['source']}")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)
