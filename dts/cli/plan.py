"""`dts plan`: what a base and its tasks will take of memory, before anything is loaded."""

from pathlib import Path
from typing import Annotated

import typer

from dts.cli.common import Device, Json, TrustRemoteCode, bytes_text, emit, listing, output, parse_fraction
from dts.files import expanded, real


def plan(
    model: Annotated[str, typer.Argument(help="The base: folder or hub id.", show_default=False)],
    adapters: Annotated[
        list[Path] | None,
        typer.Argument(help="Adapters, or folders that hold some; each is a task by its folder's name."),
    ] = None,
    memory: Annotated[
        str | None,
        typer.Option(help="All that may be used, as 1GiB: tasks beyond it stay on disk.", show_default="no limit"),
    ] = None,
    batch: Annotated[int, typer.Option(help="Rows of a pass.")] = 1,
    length: Annotated[
        int | None,
        typer.Option(
            help="Tokens of a row; of one that is generated, with its answer.",
            show_default="128, or as many as the model takes",
        ),
    ] = None,
    device: Device = "cpu",
    dtype: Annotated[str, typer.Option(help="Of the base: auto is as most of it is stored.")] = "auto",
    prefix: Annotated[
        str | None,
        typer.Option(help="Take so much of each adapter only, as 0.5% of the base.", show_default="whole adapters"),
    ] = None,
    pin: Annotated[
        list[str] | None, typer.Option(help="A task that stays in memory; may be repeated.", show_default=False)
    ] = None,
    trust_remote_code: TrustRemoteCode = False,
    as_json: Json = False,
):
    """What a base and its tasks take of memory, and where: computed from headers and configs, nothing is loaded.

    With --memory, as many tasks as fit are in memory and the others on disk, from where they come when they are asked
    for; a limit that does not do is refused with the smallest that would.  DTSModel.from_pretrained(...,
    memory="1GiB") keeps to the same plan.
    """
    from dts import plan as room

    made = room.plan(
        model,
        found(adapters or []),
        memory,
        batch=batch,
        length=length,
        device=device,
        dtype=dtype,
        prefix=None if prefix is None else parse_fraction(prefix),
        pin=tuple(pin or ()),
        trust_remote_code=trust_remote_code,
    )

    def show():
        table = listing(
            f"{made.dtype} on {made.device}, {batch} rows of {made.length} tokens", "what", "bytes", "where", ""
        )
        table.columns[2].justify = table.columns[3].justify = "left"
        for row in made.rows:
            table.add_row(row.what, bytes_text(row.nbytes), row.where, row.note)
        table.add_row("in memory", bytes_text(made.total), "", made.against)
        output.print(table)
        for why in made.unknown:
            output.print(f"not counted: {why}", soft_wrap=True)

    emit(made.as_dict(), as_json, show)


def found(folders: list[Path]) -> dict[str, Path]:
    """Task -> folder, of adapters and of folders that hold some; raises ValueError for others and for names twice."""
    from dts.adapter.folder import CONFIG

    tasks: dict[str, Path] = {}
    wrong: list[str] = []
    for folder in map(expanded, folders):
        own = [folder] if (folder / CONFIG).is_file() else sorted(path.parent for path in folder.glob(f"*/{CONFIG}"))
        if not own:
            wrong.append(f"{folder} is no adapter and holds none")
        for one in own:
            name = real(one).name
            if name in tasks and real(tasks[name]) != real(one):
                wrong.append(f"{tasks[name]} and {one} have one name, {name}")
            tasks[name] = one
    if wrong:
        raise ValueError("; ".join(wrong))
    return tasks
