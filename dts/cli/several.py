"""``dts compress --config``, or ``--ray``: many fine-tunes, and a table of what became of each."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from dts.cli.common import CHECK_FAILED, bytes_text, emit, errors, listing, output, percent, progress_bar
from dts.cli.compressed import ANSWERS

if TYPE_CHECKING:
    from dts.cli.recipe import Recipe
    from dts.ray.cluster import Cluster


def recipe_of(base: str, finetuned: dict[str, str], out: Path, how: dict[str, Any]) -> Recipe:
    """What a command line says, as a file would.  finetuned: sources by name;  how: keywords of `dts.compress`."""
    from dts.adapter.options import Options
    from dts.cli.recipe import Job, Recipe

    Options(**how)  # what is wrong for all is said before anything is begun
    usual = Options()
    base_is = how.get("base_is", usual.base_is)
    how = {key: value for key, value in how.items() if value != getattr(usual, key)}  # as a file leaves it out
    alone = len(finetuned) == 1  # its adapter is then ``out`` itself, and the notes lie beside it
    jobs = [Job(name, source, out if alone else out / name, how | {"name": name}) for name, source in finetuned.items()]
    return Recipe(base, out.absolute().parent if alone else out, jobs, base_is)


def follow(
    context: typer.Context,
    recipe: Recipe,
    jobs: int,
    overwrite: bool,
    dry_run: bool,
    as_json: bool,
    cluster: Cluster | None = None,
) -> None:
    """Compresses all that the recipe names; exit code 1 if any of it failed."""
    from dts.cli.many import run

    def warn(text: str) -> None:
        errors.print(f"Warning: {text}")

    with progress_bar("Compressing") as progress:
        rows = run(recipe, jobs, overwrite, dry_run, progress, warn, cluster)
    failed = [row for row in rows if row["state"] == "failed"]
    for row in failed:
        trace = row.pop("traceback")
        if getattr(context.find_root().command, "debug", False):
            errors.print(f"{row['name']}:\n{trace}", soft_wrap=True)
    emit({"out": str(recipe.out), "base": recipe.base, "finetunes": rows}, as_json, lambda: _show(rows))
    if failed:
        raise typer.Exit(CHECK_FAILED)


def _show(rows: list[dict]) -> None:
    from dts.adapter.expected import span

    columns = ("state", "bytes", "of base", "squared error", "answers")
    table = listing(None, "fine-tune", *columns, text=("state",))
    for row in rows:
        if row["state"] == "failed":
            table.add_row(row["name"], "failed")
            continue
        error = row["squared_error"]
        table.add_row(
            row["name"],
            row["state"],
            bytes_text(row["bytes"]),
            percent(row["amr"]),
            "" if error is None else f"{error:.3f}",
            span(row["method"], error) or "–",
        )
    output.print(table)
    output.print(ANSWERS, soft_wrap=True)
    failed = [row for row in rows if row["state"] == "failed"]
    for row in failed:
        output.print(f"{row['name']} failed: {row['reason']}", style="red", soft_wrap=True)
    if failed:
        output.print(f"{len(failed)} of {len(rows)} failed; the same command goes on with those that are not there")
