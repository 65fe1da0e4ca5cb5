"""`dts merge`: many fine-tunes into one merged base."""

import json
from inspect import signature
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from dts.cli.common import (
    DryRun,
    Json,
    Revision,
    at,
    bytes_text,
    counts_text,
    emit,
    foretell,
    output,
    progress_bar,
    said,
)
from dts.files import expanded


def merge(
    context: typer.Context,
    finetuned: Annotated[
        list[str] | None,
        typer.Argument(help="Full fine-tunes of one base; id@revision for one of a hub id.", show_default=False),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option("--base", "-b", help="The pretrained model; 'average' works without.", show_default=False),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder of the merged model.", show_default=False)
    ] = None,
    method: Annotated[str, typer.Option("--method", "-m", help="See --methods.")] = "average",
    option: Annotated[
        list[str] | None,
        typer.Option("--option", help="Of the method, name=value; may be repeated.", show_default=False),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of methods that draw at random.")] = 0,
    methods: Annotated[bool, typer.Option("--methods", help="List the methods and their options.")] = False,
    revision: Revision = None,
    dry_run: DryRun = False,
    as_json: Json = False,
):
    """Merge fine-tunes into one model that transformers loads, one tensor at a time."""
    from dts.merge import METHODS
    from dts.merge import merge as merge_models
    from dts.merge.folder import check_merged
    from dts.merge.registry import method as method_named

    if methods:
        return emit(_methods(), as_json, _show_methods)
    if not finetuned or out is None:
        raise ValueError("give the fine-tunes to merge and --out for the merged model, or --methods to see the methods")
    options, base = options_of(option), at(base, revision)
    if "seed" in said(context) and not method_named(method).draws:
        drawing = ", ".join(one.name for one in METHODS.values() if one.draws)
        raise ValueError(f"--seed: {method} draws nothing at random; {drawing} do: leave it out")
    if own := sorted({*options} & {*signature(merge_models).parameters} - {"exclude", "options"}):
        raise ValueError(f"--option {', '.join(own)}: of no method; --base, --out, --seed and --dry-run say theirs")
    accounts: list = []
    with progress_bar(f"Merging by {method}") as progress:
        foretell(dry_run, lambda: check_merged(expanded(out)))
        merged = merge_models(
            base,
            finetuned,
            method=method,
            out=out,
            seed=seed,
            progress=progress,
            account=accounts.append,
            dry_run=dry_run,
            **options,
        )
    result = {
        "out": str(out),
        "method": method,
        "options": options,
        "base": base,
        "models": finetuned,
        "bytes": merged if dry_run else sum(file.stat().st_size for file in expanded(out).rglob("*.safetensors")),
        "written": not dry_run,
    }
    result["account"] = accounts[0].as_dict() if accounts else None
    emit(result, as_json, lambda: _show(result))


def options_of(given: list[str] | None) -> dict[str, Any]:
    """``["density=0.2", "sign=total"]`` -> {"density": 0.2, "sign": "total"}: JSON where it is, else text."""
    options = {}
    for item in given or []:
        name, equals, value = item.partition("=")
        if not equals:
            raise ValueError(f"--option {item!r} is not name=value")
        try:
            options[name] = json.loads(value)
        except json.JSONDecodeError:
            options[name] = value
    return options


def _methods() -> list[dict]:
    from dts.merge import METHODS

    return [
        {
            "name": m.name,
            "paper": m.paper,
            "summary": m.summary,
            "needs_base": m.needs_base,
            "options": {name: {"default": o.default, "text": o.text} for name, o in m.options.items()},
        }
        for m in METHODS.values()
    ]


def _show_methods():
    table = Table(title="Merging methods", title_justify="left")
    table.add_column("method", no_wrap=True)
    for column in ("what it does", "options (default)"):
        table.add_column(column, overflow="fold")
    for m in _methods():
        options = "\n".join(f"{name} ({o['default']}): {o['text']}" for name, o in m["options"].items())
        table.add_row(m["name"], f"{m['summary']}  {m['paper']}", options)
    output.print(table)


def _show(result: dict):
    done = "Wrote" if result["written"] else "Would write"
    output.print(
        f"{done} {result['out']}: {len(result['models'])} models merged by {result['method']}, "
        f"{bytes_text(result['bytes'])}",
        soft_wrap=True,
    )
    if result["account"]:
        output.print(counts_text(result["account"]), soft_wrap=True)
