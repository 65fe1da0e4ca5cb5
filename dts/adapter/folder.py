"""Putting a finished folder in its place, with what was there kept until it is."""

import shutil
from collections.abc import Callable
from pathlib import Path

LAST = "dts_config.json"  # without it a folder is no adapter: one that is being filled is not taken for one


def beside(out: Path, suffix: str) -> Path:
    """The hidden neighbour of a folder, ``.name.suffix``; of "." and ".." too, which have no name of their own."""
    out = out.resolve()
    return out.with_name(f".{out.name}.{suffix}")


def check_place(out: Path, overwrite: bool, what: str, ours: Callable[[Path], bool]) -> None:
    """Raises FileExistsError unless ``out`` is free, empty, or ours and to be overwritten; what: "an adapter"."""
    if not out.exists() or out.is_dir() and not any(out.iterdir()):
        return
    if not out.is_dir():
        raise FileExistsError(f"{out} is a file: choose a folder")
    if not ours(out):
        raise FileExistsError(f"{out} exists and is not {what}: choose another folder")
    if not overwrite:
        raise FileExistsError(f"{out} exists: choose another folder, or ask for it to be overwritten")


def place(partial: Path, out: Path) -> None:
    """Renames ``partial`` to ``out``; an old folder is set aside meanwhile and put back if that fails."""
    out = out.resolve()  # of a link, the folder it leads to is replaced
    if not out.exists():
        partial.rename(out)
    elif not any(out.iterdir()):
        _fill(partial, out)
    else:
        old = beside(out, "old")
        shutil.rmtree(old, ignore_errors=True)
        out.rename(old)
        try:
            partial.rename(out)
        except BaseException:
            old.rename(out)
            raise
        shutil.rmtree(old)


def _fill(partial: Path, out: Path) -> None:
    """Moves the files into an empty folder, which stays the same one: it may be where a shell is working."""
    moved = []
    try:
        for file in sorted(partial.iterdir(), key=lambda file: (file.name == LAST, file.name)):
            moved.append(file.rename(out / file.name))
    except BaseException:
        for file in moved:
            file.unlink()
        raise
    partial.rmdir()
