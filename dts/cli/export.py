"""`dts export`: adapters in the formats of other libraries."""

from pathlib import Path
from typing import Annotated

import typer

from dts.cli import programs
from dts.cli.common import Base, Json, Overwrite, Revision, at, bytes_text, emit, listing, output, progress_bar

export = typer.Typer(
    help="Write adapters in the formats of other libraries, or a base with many tasks as one program for another "
    "run-time; what that loses is printed as a figure.",
    no_args_is_help=True,
)
for command in (programs.torch, programs.aoti, programs.onnx):
    export.command()(command)

Adapter = Annotated[str, typer.Argument(help="Folder of the adapter.", show_default=False)]
Rank = Annotated[
    int | None,
    typer.Option(help="The largest rank of a layer; what that cuts off is stated.", show_default=False),
]


@export.command()
def lora(
    adapter: Adapter,
    out: Annotated[Path, typer.Argument(help="Folder of the LoRA.", show_default=False)],
    base: Base,
    rank: Rank = None,
    dtype: Annotated[str, typer.Option(help="Of the factors: float32 (exact), bfloat16 or float16.")] = "float32",
    revision: Revision = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
):
    """Write a PEFT LoRA, exact from components, with whole modules beside it where LoRA has no place."""
    from dts.exports import export_lora

    with progress_bar(f"Writing {out}") as progress:
        result = export_lora(adapter, at(base, revision), out, rank, dtype, overwrite=overwrite, progress=progress)
    emit(result.as_dict(), as_json, lambda: show(result))


@export.command()
def gguf_lora(
    adapter: Adapter,
    out: Annotated[Path, typer.Argument(help="The file, .gguf.", show_default=False)],
    base: Base,
    rank: Rank = None,
    dtype: Annotated[str, typer.Option(help="Of the factors: float32 (exact) or float16.")] = "float32",
    revision: Revision = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
):
    """Write a LoRA of llama.cpp (needs the package gguf): matrices alone, what is left out is stated."""
    from dts.exports import export_gguf_lora

    with progress_bar(f"Writing {out}") as progress:
        result = export_gguf_lora(adapter, at(base, revision), out, rank, dtype, overwrite=overwrite, progress=progress)
    emit(result.as_dict(), as_json, lambda: show(result))


def show(result) -> None:
    """What was written, what it loses, and what its user must know."""
    ranks = [one.rank for one in result.parameters if one.how == "lora"]
    whole = sum(one.how == "whole" for one in result.parameters)
    output.print(
        f"Wrote {result.out}: {bytes_text(result.nbytes)}, {len(ranks)} layers of rank {min(ranks, default=0)} to "
        f"{max(ranks, default=0)}, {whole} parameters whole; squared relative error {result.squared_error:.3g}",
        soft_wrap=True,
    )
    if worst := result.worst():
        table = listing("What loses most", "parameter", "rank", "squared error", "why", text=("why",))
        for one in worst:
            table.add_row(one.name, str(one.rank), f"{one.squared_error:.3g}", one.why)
        output.print(table)
    if left := result.left_out:
        output.print(f"{len(left)} parameters are left out; --json lists them", style="red")
    for note in result.notes:
        output.print(f"Note: {note}", soft_wrap=True)
