"""`dts apply`: base + adapter -> a full checkpoint that transformers loads."""

from pathlib import Path
from typing import Annotated

import typer

from dts.cli.common import (
    DryRun,
    Json,
    Overwrite,
    Revision,
    at,
    bytes_text,
    counts_text,
    emit,
    foretell,
    output,
    progress_bar,
)
from dts.files import expanded


def apply(
    base: Annotated[str, typer.Argument(help="Folder, file or hub id of the base model.", show_default=False)],
    adapter: Annotated[str, typer.Argument(help="Folder of the adapter.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the full model.", show_default=False)],
    revision: Revision = None,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    as_json: Json = False,
):
    """Write the reconstructed fine-tune as a full model, one tensor in memory at a time."""
    import dts
    from dts.adapter import write_checkpoint
    from dts.adapter.accounting import of_model
    from dts.adapter.apply import base_of, check_target
    from dts.adapter.code import code_files

    base = at(base, revision)
    loaded = dts.Adapter.load(adapter)
    opened = base_of(loaded, base)
    model = loaded.on(opened)
    account = of_model(loaded, opened, model)
    foretell(dry_run, lambda: check_target(expanded(out), opened, loaded, overwrite))
    if not dry_run:
        with progress_bar(f"Writing {out}", in_bytes=True) as progress:
            write_checkpoint(opened, loaded, out, overwrite=overwrite, progress=progress)
    result = {
        "out": str(out),
        "adapter": loaded.name,
        "tensors": len(model.names),
        "parameters": model.parameters,
        "bytes": model.nbytes,
        "written": not dry_run,
        "code": [file.name for file in code_files(opened)],
        "account": account.as_dict(),
    }
    done = "Would write" if dry_run else "Wrote"
    emit(
        result,
        as_json,
        lambda: output.print(
            f"{done} {out}: {loaded.name}, {model.parameters:,} parameters, {bytes_text(model.nbytes)}\n"
            f"{counts_text(result['account'])}" + _code(result["code"]),
            soft_wrap=True,
        ),
    )


def _code(files: list[str]) -> str:
    """A line on code that came with the base."""
    return f"\nwith the base's own code, {', '.join(files)}: loads with trust_remote_code=True" if files else ""
