"""``dts compress --config``: a file of many fine-tunes followed, and a table of what became of each."""

from pathlib import Path

import typer

from dts.cli.common import CHECK_FAILED, bytes_text, emit, errors, listing, output, percent, progress_bar
from dts.cli.compressed import ANSWERS


def follow(
    context: typer.Context, config: Path, out: Path | None, jobs: int, overwrite: bool, dry_run: bool, as_json: bool
) -> None:
    """Compresses all that the file names; exit code 1 if any of it failed."""
    from dts.cli.many import run
    from dts.cli.recipe import read_recipe

    recipe = read_recipe(config, out)
    with progress_bar("Compressing") as progress:
        rows = run(recipe, jobs, overwrite, dry_run, progress, lambda text: errors.print(f"Warning: {text}"))
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
