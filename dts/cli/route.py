"""`dts route`: examples of a task's inputs, so that `tasks="auto"` finds the task by them."""

from pathlib import Path
from typing import Annotated

import typer

from dts.cli.common import (
    Device,
    DryRun,
    InputColumn,
    Json,
    MaxLength,
    Revision,
    TrustRemoteCode,
    at,
    bytes_text,
    emit,
    output,
    pairs,
    said,
)
from dts.files import expanded

ROWS = 512  # of a file, at most
REMOVING = ("adapter", "out", "remove", "dry_run", "as_json")  # what goes with --remove


def route(
    context: typer.Context,
    adapter: Annotated[str, typer.Argument(help="Folder of the adapter, which is written anew.", show_default=False)],
    examples: Annotated[
        str | None,
        typer.Option(
            "--examples",
            "-e",
            help="A .csv, .tsv, .jsonl or .parquet file with named columns, or a .txt file with a text a line: some 64 "
            "inputs of the task or more, of which labels are not read.",
            show_default=False,
        ),
    ] = None,
    base: Annotated[
        str | None, typer.Option("--base", "-b", help="Folder or hub id of the base model.", show_default=False)
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Leave the adapter as it is, and write this folder.", show_default=False),
    ] = None,
    remove: Annotated[bool, typer.Option("--remove", help="Take out what an earlier call put in.")] = False,
    text: InputColumn = None,
    max_length: MaxLength = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(
            help="Folder of the tokenizer or image processor; default the adapter's, the base's.", show_default=False
        ),
    ] = None,
    layer: Annotated[
        str | None,
        typer.Option(
            help="Name of the weight of the base's layer whose inputs are looked at, the same one for all tasks.",
            show_default="the first block's that runs first",
        ),
    ] = None,
    device: Device = "cpu",
    revision: Revision = None,
    trust_remote_code: TrustRemoteCode = False,
    dry_run: DryRun = False,
    as_json: Json = False,
):
    """Tell an adapter what its task's inputs look like, from unlabelled examples.

    By these few KB the task of an input is found where no id is given, whatever the adapter is made of."""
    import dts
    from dts.devices import device_named

    if remove == (examples is not None):
        raise ValueError("give --examples FILE and --base MODEL, or --remove alone")
    if remove and (given := [word for name, word in said(context).items() if name not in REMOVING]):
        raise ValueError(
            f"--remove takes out what is there, and {', '.join(given)} would be of what is put in: leave out"
        )
    loaded = dts.Adapter.load(adapter)
    before = loaded.nbytes
    if remove:
        if loaded.inputs is None:
            raise ValueError(f"{adapter} holds nothing for a router to be removed")
        loaded.tell(None)
    else:
        if base is None:
            raise ValueError("--base is missing: the examples are run through the first layers of the base model")
        own = tokenizer or tokenizer_of(adapter)
        where = str(device_named(device))
        found = statistics(at(base, revision), str(examples), text, own, max_length, where, trust_remote_code, layer)
        loaded.tell(found)
    if not dry_run:
        loaded.save(out or adapter, overwrite=out is None)
    known = loaded.inputs
    result = {
        "name": loaded.name,
        "folder": str(out or adapter),
        "examples": None if known is None else known.examples,
        "layer": None if known is None else known.layer,
        "router_bytes": loaded.beside,
        "from_bytes": before,
        "bytes": loaded.nbytes,
        "written": not dry_run,
    }
    emit(result, as_json, lambda: _show(result))


def statistics(
    base: str, examples: str, text=None, tokenizer=None, max_length=None, device="cpu", trusted=False, layer=None
):
    """What a router is to know of the inputs in a file."""
    from dts.evaluate.data import read

    found = read(examples, text, option="the file of examples").sampled(ROWS)
    try:
        from dts.evaluate.route import statistics_of
    except ImportError as error:
        raise ImportError("dts route runs models of transformers: pip install 'dts-merge[hf]'") from error
    made = statistics_of(
        base, found, tokenizer=tokenizer, longest=max_length, device=device, trusted=trusted, layer=layer
    )
    _few(made.examples, examples)
    return made


def _few(count: int, source: str) -> None:
    from dts.unseen.statistics import ENOUGH
    from dts.warn import warn

    if count < ENOUGH:
        warn(f"{source} has {count} inputs: of fewer than {ENOUGH} a router learns little, 64 or more do well")


def tokenizer_of(source: str | Path) -> Path | None:
    """The folder of an adapter or a fine-tune, where it brings a tokenizer."""
    from dts.adapter.tokenizer import has_tokenizer

    folder = expanded(source)
    return folder if folder.is_dir() and has_tokenizer(folder) else None


def _show(result: dict):
    rows = {
        "task": result["name"],
        "examples": result["examples"] or "none",
        "layer": result["layer"],
        "for a router": bytes_text(result["router_bytes"]) if result["router_bytes"] else None,
        "bytes": f"{result['bytes']:,} (before: {result['from_bytes']:,})",
        "folder": result["folder"],
    }
    output.print(pairs("Wrote" if result["written"] else "Would write", {k: v for k, v in rows.items() if v}))
