"""`dts import`: adapters of other libraries (a module cannot be called import)."""

from pathlib import Path
from typing import Annotated, Any

import typer

from dts.cli.common import (
    Base,
    Json,
    Overwrite,
    Resume,
    Revision,
    at,
    emit,
    list_of,
    output,
    parse_fraction,
    parse_size,
    progress_bar,
)

imports = typer.Typer(help="Make an adapter of what another library wrote.", no_args_is_help=True)

Out = Annotated[Path, typer.Option("--out", "-o", help="Folder of the adapter.", show_default=False)]
ClassNames = Annotated[str | None, typer.Option(help="a,b,c or @file with a class a line.", show_default=False)]


@imports.command()
def lora(
    folder: Annotated[
        str, typer.Argument(help="A PEFT LoRA: what PEFT saves or mergekit extracts.", show_default=False)
    ],
    base: Base,
    out: Out,
    size: Annotated[
        str | None,
        typer.Option("--budget", "-s", help="Bytes of the whole adapter: 1% (default), 500KB.", show_default=False),
    ] = None,
    target_error: Annotated[
        str | None,
        typer.Option(help="Squared relative error of the difference instead, as few bytes as do.", show_default=False),
    ] = None,
    method: Annotated[str, typer.Option(help="residual, sketch, paper or auto: as of dts compress.")] = "residual",
    name: Annotated[str | None, typer.Option(help="Of the task.", show_default=False)] = None,
    class_names: ClassNames = None,
    revision: Revision = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
):
    """Make a PEFT LoRA an adapter: its difference as 2-bit components, with the error stated."""
    from dts.cli.inspect import summary, summary_table
    from dts.exports import import_lora

    if size is not None and target_error is not None:
        raise ValueError("--budget and --target-error say the size twice: keep one")
    how: dict[str, Any] = parse_size("1%" if size is None else size)
    if target_error is not None:
        how = {"target_error": parse_fraction(target_error)}
    if name is not None:
        how["name"] = name
    with progress_bar(f"Importing {folder}", in_bytes=True) as progress:
        adapter = import_lora(
            folder,
            at(base, revision),
            out,
            method=method,
            class_names=list_of(class_names),
            resume=resume,
            overwrite=overwrite,
            progress=progress,
            **how,
        )
    result = summary(adapter) | {"folder": str(out), "written": True}
    emit(result, as_json, lambda: output.print(summary_table(result, "Wrote")))


@imports.command()
def bitdelta(
    file: Annotated[str, typer.Argument(help="BitDelta's diff.pt.", show_default=False)],
    base: Base,
    out: Out,
    name: Annotated[str | None, typer.Option(help="Of the task; default its folder's.", show_default=False)] = None,
    class_names: ClassNames = None,
    revision: Revision = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
):
    """Make BitDelta's signs and scales an adapter: two bits an element, nothing lost."""
    from dts.cli.inspect import account_of, summary, summary_table
    from dts.exports import import_bitdelta

    adapter = import_bitdelta(file, at(base, revision), out, name, list_of(class_names), overwrite=overwrite)
    result = summary(adapter) | {"folder": str(out), "written": True} | account_of(adapter)
    emit(result, as_json, lambda: output.print(summary_table(result, "Wrote")))


@imports.command()
def sparse(
    source: Annotated[
        str,
        typer.Argument(help="A .safetensors file of NAME.indices and NAME.values, or its folder.", show_default=False),
    ],
    base: Base,
    out: Out,
    values: Annotated[
        str, typer.Option(help="new: they take the place of the base's.  differences: they are added to them.")
    ] = "new",
    name: Annotated[str | None, typer.Option(help="Of the task; default the file's.", show_default=False)] = None,
    class_names: ClassNames = None,
    revision: Revision = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
):
    """Make a sparse patch an adapter that keeps every bit (method exact)."""
    from dts.cli.inspect import account_of, summary, summary_table
    from dts.exports import import_sparse

    own: dict[str, Any] = {} if name is None else {"name": name}
    with progress_bar(f"Importing {source}", in_bytes=True) as progress:
        adapter = import_sparse(
            source,
            at(base, revision),
            out,
            values,
            class_names=list_of(class_names),
            resume=resume,
            overwrite=overwrite,
            progress=progress,
            **own,
        )
    result = summary(adapter) | {"folder": str(out), "written": True} | account_of(adapter)
    emit(result, as_json, lambda: output.print(summary_table(result, "Wrote")))
