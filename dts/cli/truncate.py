"""`dts truncate`: a smaller adapter from a larger one, without the fine-tune."""

from pathlib import Path
from typing import Annotated

import typer

from dts.cli.common import DryRun, Json, Overwrite, bytes_text, emit, foretell, output, parse_size
from dts.cli.inspect import summary, summary_table
from dts.files import expanded


def truncate(
    adapter: Annotated[str, typer.Argument(help="Folder of the adapter.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the smaller one.", show_default=False)],
    size: Annotated[
        str,
        typer.Option(
            "--budget", "-s", help="Bytes of the whole adapter: 0.5% (of the base in fp32), 500KB.", show_default=False
        ),
    ],
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    as_json: Json = False,
):
    """Keep the leading components of every matrix, or a smaller sketch of it: any smaller size from one adapter."""
    import dts
    from dts.adapter.folder import check_out
    from dts.warn import warn

    whole = dts.Adapter.load(adapter)
    smaller = whole.truncate(**parse_size(size))
    if smaller.nbytes >= whole.nbytes:
        warn(f"{adapter} has {bytes_text(whole.nbytes)} already: nothing is left out for {size}")
    foretell(dry_run, lambda: check_out(expanded(out), overwrite))
    if not dry_run:
        smaller.save(out, overwrite=overwrite)
    result = summary(smaller) | {"folder": str(out), "from_bytes": whole.nbytes, "written": not dry_run}
    title = "Would write" if dry_run else "Wrote"
    emit(result, as_json, lambda: output.print(summary_table(result, title)))
