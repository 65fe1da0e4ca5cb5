"""Errors predicted before compressing against the errors measured afterwards, on real fine-tunes.

    python -m benchmarks.quality.theory FINE-TUNE... [--base FOLDER] [--budgets 0.3%,1%,3%] [--out FILE]

For every fine-tune, method and budget: `dts compress --dry-run`'s prediction, and the adapter then made, matrix by
matrix at the ranks the budget chose.  Of some matrices also their singular values, and the error at several ranks.
`python -m benchmarks.quality.report` shows the file, ``theory.json`` among the results.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path

import dts
from benchmarks.quality.command import make_place
from dts.adapter.plan import shared_delta
from dts.checkpoint import open_checkpoint, pair
from dts.cli.common import parse_size
from dts.codec import compress_tensor, singular_values
from dts.files import write_text

METHODS = ("residual", "paper")
CURVE = (0.01, 0.03, 0.1, 0.3, 0.6)  # rank fractions


def compare(base: Path, finetuned: Path, budgets: list[float], task: str) -> list[dict]:
    """A row a method and budget: predicted, lower, upper and measured squared relative error of the whole difference,
    and the same of every compressed matrix, with its shape, rank and norm."""
    rows = []
    for method in METHODS:
        for budget in budgets:
            try:
                predicted = dts.compress(base, finetuned, method=method, budget=budget, dry_run=True).prediction
                adapter = dts.compress(base, finetuned, method=method, budget=budget)
            except dts.BudgetError as error:
                print(f"{task}, {method} at {100 * budget:g} %: {error}", file=sys.stderr)
                continue
            row = {
                "task": task,
                "method": method,
                "budget": budget,
                "bytes": adapter.nbytes,
                "predicted": predicted.squared_error,
                "lower": predicted.lower,
                "upper": predicted.upper,
                "measured": adapter.config["squared_error"],
                "tensors": [],
            }
            for tensor in predicted.tensors:
                entry = adapter.entries.get(tensor.name)
                if entry is not None and tensor.ranks == (entry.rank,):  # the codec may have moved a few ranks
                    row["tensors"].append(
                        [
                            tensor.name,
                            tensor.shape,
                            entry.rank,
                            tensor.norm,
                            tensor.squared_error,
                            tensor.lower,
                            tensor.upper,
                            entry.squared_error,
                        ]
                    )
            rows.append(row)
            print(
                f"{task:>14} {method:>8} at {100 * budget:g} %: predicted {row['predicted']:.4f} "
                f"({row['lower']:.4f} to {row['upper']:.4f}), measured {row['measured']:.4f}",
                flush=True,
            )
    return rows


def spectra(base: Path, finetuned: Path, task: str, count: int = 3) -> list[dict]:
    """Of ``count`` matrices, from the steepest to the flattest spectrum: shape, all singular values, and the measured
    error of both methods at several ranks."""
    pairing = pair(open_checkpoint(base), open_checkpoint(finetuned))
    found = []
    for name, one in pairing.pairs.items():
        shape = pairing.finetuned.shape(name)
        if one.base_name is None or len(shape) != 2 or min(shape) < 64 or shape[0] > 8192:
            continue
        delta = shared_delta(pairing, one)
        if delta.any():
            values = singular_values(delta)
            energies = values.square() / values.square().sum()
            found.append((energies.square().sum().item(), name, delta, values))
    found.sort(key=lambda each: -each[0])
    chosen = [found[round(i * (len(found) - 1) / max(1, count - 1))] for i in range(min(count, len(found)))]
    rows = []
    for _, name, delta, values in chosen:
        ranks = sorted({max(1, int(r * len(values))) for r in CURVE})
        measured = {m: [compress_tensor(delta, method=m, rank=k).squared_error for k in ranks] for m in METHODS}
        rows.append(
            {
                "task": task,
                "name": name,
                "shape": list(delta.shape),
                "ranks": ranks,
                "measured": measured,
                "singular_values": values.tolist(),
            }
        )
    return rows


def ranks(base: Path, finetuned: Path, task: str, budget: float) -> dict:
    """The ranks that ``budget`` chooses for components alone: {name: [shape, rank]}, from a dry run."""
    predicted = dts.compress(base, finetuned, method="residual", budget=budget, dry_run=True).prediction
    return {"task": task, "budget": budget, "ranks": {t.name: [list(t.shape), max(t.ranks)] for t in predicted.tensors}}


def rounded(value, digits: int = 4):
    """Every float in a structure of lists and dicts to so many digits."""
    if isinstance(value, dict):
        return {key: rounded(each, digits) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(each, digits) for each in value]
    return float(f"{value:.{digits}g}") if isinstance(value, float) else value


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("finetunes", nargs="+", type=Path)
    parser.add_argument("--base", type=Path, help="default: the packaged MiniLM")
    parser.add_argument("--budgets", default="0.3%,1%,3%", help="of the base in fp32, by commas")
    parser.add_argument("--out", type=Path, default=Path("theory.json"))
    options = parser.parse_args(arguments)
    make_place(parser, options.out)
    if options.base is None:
        from dts.demo.finetune import base_folder

        options.base = base_folder()
    budgets = [parse_size(text)["budget"] for text in options.budgets.split(",")]
    content: dict[str, list] = {"compared": [], "spectra": [], "ranks": []}
    for folder in options.finetunes:
        task = re.sub(r"-[0-9a-f]{16}$", "", folder.resolve().name)  # cached fine-tunes end in a digest
        content["compared"] += compare(options.base, folder, budgets, task)
        content["ranks"].append(ranks(options.base, folder, task, min(budgets, key=lambda b: abs(b - 0.01))))
        if not content["spectra"]:
            content["spectra"] = spectra(options.base, folder, task)
    write_text(options.out, json.dumps(rounded(content), separators=(",", ":")) + "\n")
    print(f"wrote {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
