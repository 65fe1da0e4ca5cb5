"""Accuracy and KL against bytes, both methods."""

from pathlib import Path

COLOURS = {"paper": "#c0504d", "auto": "#1f6fb4"}


def frontier(report: dict, path: Path) -> None:
    """Two panels against the adapter's bytes: mean accuracy, and mean KL to the fine-tunes; thin lines are tasks."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import FixedLocator, NullLocator

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    for method, colour in COLOURS.items():
        for row in report["tasks"]:
            x, _, kl = _series(row["adapters"], method)
            right.plot(x, kl, color=colour, alpha=0.25, linewidth=0.8)
        x, accuracy, kl = _series(report["mean"]["adapters"], method)
        left.plot(x, accuracy, "o-", color=colour, label=method)
        right.plot(x, kl, "o-", color=colour, label=f"{method}, mean of {len(report['tasks'])} tasks")
    left.axhline(100 * report["mean"]["accuracy_finetuned"], color="0.3", linewidth=1, label="fine-tuned")
    left.set(ylabel="mean accuracy, %", title="Accuracy kept")
    right.set(yscale="log", ylabel="KL(fine-tuned || adapter), nats", title="Distance from the fine-tune's answers")
    for axes in (left, right):
        axes.set(xscale="log", xlabel="one adapter on disk, KB")
        axes.xaxis.set_major_locator(FixedLocator([200e3, 300e3, 500e3, 1e6, 2e6]))
        axes.xaxis.set_major_formatter(lambda value, _: f"{value / 1000:.0f}")
        axes.xaxis.set_minor_locator(NullLocator())
        axes.grid(alpha=0.3)
        axes.legend()
    figure.suptitle(f"One MiniLM base ({report['base']['bytes'] / 1e6:.0f} MB), {len(report['tasks'])} tasks")
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _series(adapters: list[dict], method: str) -> tuple[list, list, list]:
    chosen = sorted((a for a in adapters if a["method"] == method), key=lambda a: a["bytes"])
    return [a["bytes"] for a in chosen], [100 * a["accuracy"] for a in chosen], [max(a["kl"], 1e-9) for a in chosen]
