"""`dts list`: the adapters of a folder, each checked."""

from pathlib import Path
from typing import Annotated

import typer

from dts.cli.common import CHECK_FAILED, Json, bytes_text, emit, listing, message_of, output, percent
from dts.files import expanded

SHOWN = 12  # names of what is passed over


def shelf(
    folder: Annotated[Path, typer.Argument(help="Folder of adapters, or one of them.", show_default=False)],
    recursive: Annotated[bool, typer.Option("--recursive", "-r", help="Look in folders within folders too.")] = False,
    quick: Annotated[
        bool, typer.Option("--quick", "-q", help="Read the configurations only: what is damaged may not be noticed.")
    ] = False,
    newest: Annotated[bool, typer.Option("--newest", help="Newest first, instead of by name.")] = False,
    as_json: Json = False,
):
    """List the adapters in a folder: task, size, base, and whether each is whole; exit code 1 if one is not."""
    result = look(folder, recursive, quick, newest)
    emit(result, as_json, lambda: _show(result))
    if any(row["state"] == "damaged" for row in result["adapters"]):
        raise typer.Exit(CHECK_FAILED)


def look(folder: Path, recursive: bool = False, quick: bool = False, newest: bool = False) -> dict:
    """What `dts list` says, as plain data.

    ``adapters``: a row each;  ``passed_over``: names of what is no adapter;  ``unfinished``: of runs that were ended.
    """
    from dts.adapter.folder import CONFIG

    folder = expanded(folder)
    if not folder.is_dir():
        what = "is a file" if folder.is_file() else "is not there"
        raise FileNotFoundError(
            f"{folder} {what}: dts list takes a folder of adapters, such as --out of dts compress made"
        )
    found: list[Path] = []
    passed: list[str] = []
    unfinished: list[str] = []

    def walk(here: Path) -> None:
        for path in sorted(here.iterdir()):
            if path.name.startswith("."):
                if path.name.endswith(".partial") and path.is_dir():
                    unfinished.append(str(path.relative_to(folder)))
            elif (path / CONFIG).is_file() or _half(path):
                found.append(path)
            elif recursive and path.is_dir() and not path.is_symlink():
                walk(path)
            else:
                passed.append(str(path.relative_to(folder)))

    if (folder / CONFIG).is_file() or _half(folder):
        found.append(folder)
    else:
        walk(folder)
    rows = [_row(path, folder, quick) for path in found]
    if newest:
        rows.sort(key=lambda row: -row["changed"])
    return {"folder": str(folder), "adapters": rows, "passed_over": passed, "unfinished": unfinished}


def _half(path: Path) -> bool:
    """Has it the tensors of an adapter, whose configuration was lost?"""
    from dts.adapter.folder import MODEL

    return (path / MODEL).is_file()


def _row(path: Path, folder: Path, quick: bool) -> dict:
    """One adapter; of a damaged one what can still be read of it."""
    from dts.adapter import Adapter
    from dts.adapter.folder import CONFIG, MODEL, read_text

    config, reason = None, None
    try:
        if not (path / CONFIG).is_file():
            raise FileNotFoundError(f"it has no {CONFIG}")
        config = read_text(path / CONFIG)
        if not _sane(config):
            config = None
            raise ValueError(f"{CONFIG} lacks what every adapter says of itself")
        missing = [name for name in config["files"] if not (path / name).is_file()]
        missing += [] if _half(path) else [MODEL]
        reason = f"it has no {', '.join(missing)}" if missing else None
        if not quick and not missing:
            Adapter.load(path)
    except (ValueError, OSError) as error:
        reason = _reason(error, path)
    task, base = (config or {}).get("task", {}), (config or {}).get("base", {})
    return {
        "name": path.name if path == folder else str(path.relative_to(folder)),
        "folder": str(path),
        "task": task.get("name"),
        "class_names": task.get("class_names"),
        "description": task.get("description"),
        "kind": config and config["kind"],
        "method": config and config["method"],
        "bytes": sum(file.stat().st_size for file in path.iterdir() if file.is_file()),
        "amr": config and config["amr"],
        "base": {key: base.get(key) for key in ("name", "fingerprint", "dtype", "parameters")} if config else None,
        "format_version": config and config["format_version"],
        "changed": max(file.lstat().st_mtime for file in path.iterdir()),  # of links, which may lead nowhere
        "state": "damaged" if reason else "not checked" if quick else "whole",
        "reason": reason,
    }


def _sane(config: dict) -> bool:
    """Has it what is shown of it, each of its kind?  All else is checked where the adapter is loaded."""
    task, base = ({} if not isinstance(part := config.get(name), dict) else part for name in ("task", "base"))
    words = [config.get("method"), config.get("kind"), task.get("name"), base.get("name"), base.get("fingerprint")]
    names = task.get("class_names")
    return (
        all(isinstance(word, str) for word in words)
        and (names is None or isinstance(names, list))
        and isinstance(config.get("files"), dict)
        and isinstance(config.get("amr"), int | float)
    )


def _reason(error: Exception, path: Path) -> str:
    """The error in one line, without the folder's name that is in the row already."""
    first, *rest = [line.strip() for line in message_of(error).splitlines() if line.strip()]
    for place in (path / "dts_config.json", path / "dts_model.safetensors", path):
        first = first.replace(f"{place} ", f"{place.name if place != path else 'it'} ")
    if first.endswith(":") and rest:
        first, *rest = rest
    return first + (f" (and {len(rest)} more)" if rest else "")


def _show(result: dict):
    rows = result["adapters"]
    if rows:
        columns = ("task", "classes", "method", "bytes", "of base", "base", "format", "state")
        table = listing(None, "adapter", *columns, text=("task", "method", "base", "state"))
        for row in rows:
            table.add_row(*_cells(row))
        output.print(table)
        for row in rows:
            if row["reason"]:
                output.print(f"{row['name']} is damaged: {row['reason']}", style="red", soft_wrap=True)
    else:
        output.print(f"{result['folder']} has no adapters in it", soft_wrap=True)
    bases = {row["base"]["fingerprint"] for row in rows if row["base"]}
    if len(bases) > 1:
        output.print(f"They are for {len(bases)} bases: only those of one base go into one model")
    if passed := result["passed_over"]:
        from dts.checkpoint.errors import first

        output.print(f"Passed over, no adapters: {first(passed, SHOWN)} (-r looks inside)", soft_wrap=True)
    if unfinished := result["unfinished"]:
        output.print(
            f"Unfinished: {', '.join(unfinished)}; the same dts compress with --resume goes on there", soft_wrap=True
        )


def _cells(row: dict) -> list[str]:
    base, names = row["base"], row["class_names"]
    state = row["state"]
    if not base:
        return [row["name"], "", "", "", bytes_text(row["bytes"]), "", "", "", state]
    return [
        row["name"],
        row["task"],
        str(len(names)) if names else "–",
        row["method"],
        bytes_text(row["bytes"]),
        percent(row["amr"]),
        f"{base['name']} {base['fingerprint'][:8]}",
        str(row["format_version"]),
        state,
    ]
