"""Accuracy and KL against bytes: a picture that needs no text beside it."""

from pathlib import Path

# Okabe and Ito's colours, told apart by the colour-blind too; each method has a mark of its own as well
AUTO, PAPER, BASE, FINETUNED, MARK = "#0072B2", "#D55E00", "#CC79A7", "#009E73", "0.45"
METHODS = {
    "auto": (AUTO, "o-", "auto: the default here"),
    "paper": (PAPER, "s", "paper: the method as published, r = .3"),
}
ONE = 0.01  # the share of the base that is marked


def frontier(report: dict, path: Path) -> None:
    """Two panels against the adapter's size: mean accuracy, and mean KL to the fine-tunes; thin lines are tasks."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 5), layout="constrained")
    mean, tasks = report["mean"], report["tasks"]
    tuned, base, noise = 100 * mean["accuracy_finetuned"], 100 * mean["accuracy_base"], 100 * _noise(tasks)
    left.axhspan(tuned - noise, tuned + noise, color=FINETUNED, alpha=0.15, linewidth=0)
    left.axhline(
        tuned, color=FINETUNED, linewidth=1.5, label=f"fine-tunes, 100 % of the base's bytes each: {tuned:.1f} %"
    )
    left.axhline(base, color=BASE, linestyle="--", linewidth=1.5, label=f"base under the tasks' heads: {base:.1f} %")
    for method, (colour, marks, label) in METHODS.items():
        x, accuracy, kl = series(mean["adapters"], method)
        if not x:
            continue
        left.plot(x, accuracy, marks, color=colour, label=label)
        right.plot(x, kl, marks, color=colour, label=label, linewidth=2)
        for row in tasks if method == "auto" else ():
            own, _, values = series(row["adapters"], method)
            right.plot(own, values, color=colour, alpha=0.4, linewidth=0.8)
            right.annotate(
                row["name"],
                (own[0], values[0]),
                (-7, 0),
                textcoords="offset points",
                fontsize=8,
                color=colour,
                ha="right",
                va="center",
            )
    left.set(ylim=(0, 100), ylabel="answers that are right, %", title="Accuracy on the test sets: higher is better")
    right.set(
        yscale="log",
        ylabel="KL to the fine-tune, nats",
        title="Distance from the fine-tunes (thick: mean): lower is better",
    )
    for axes in (left, right):
        axes.set(xlabel="size of one adapter, % of the base in fp32", xlim=(0, None))
        axes.axvline(100 * ONE, color=MARK, linestyle=":", linewidth=1)
        axes.annotate(
            f"1 % = {ONE * report['base']['bytes'] / 1e3:.0f} KB",
            (100 * ONE, 0.5),
            (3, 0),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            fontsize=8,
            color=MARK,
            ha="left",
            rotation=90,
        )
        axes.grid(alpha=0.3)
    left.legend(loc="lower right", fontsize=8)
    right.legend(loc="lower left", fontsize=8)
    figure.suptitle(
        f"{len(tasks)} tasks on one base, MiniLM of {report['base']['bytes'] / 1e6:.0f} MB.  "
        f"Shaded: chance, ± {noise:.1f} % (95 %) of {sum(row['test'] for row in tasks):,} test texts; one seed",
        fontsize=10,
    )
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _noise(tasks: list[dict]) -> float:
    """Half of the 95 % interval of a mean of accuracies, from the number of each task's test texts."""
    variance = sum(row["accuracy_finetuned"] * (1 - row["accuracy_finetuned"]) / row["test"] for row in tasks)
    return 1.96 * variance**0.5 / len(tasks)


def series(adapters: list[dict], method: str) -> tuple[list, list, list]:
    """(sizes in % of the base, accuracies in %, KLs) of one method's adapters, the smallest first."""
    chosen = sorted((a for a in adapters if a["method"] == method), key=lambda a: a["bytes"])
    return (
        [100 * a["amr"] for a in chosen],
        [100 * a["accuracy"] for a in chosen],
        [max(a["kl"], 1e-9) for a in chosen],
    )
