"""What the operating system refuses, in words that say what to do."""

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

FULL = (errno.ENOSPC, errno.EDQUOT)
ROOM = "free some space and run again"
OF_WRITING = (*FULL, errno.EFBIG, errno.EROFS)  # no reading ends in one of these


@contextmanager
def explained(out: Path, mine: Callable[[Path], bool], again: str = "") -> Iterator[None]:
    """Errors of writing ``out`` come out with its name, what became of it, and what to do.

    mine: is a path one of those that are written for it?  again: how to go on.  Errors of reading anything else pass.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None or not (error.errno in OF_WRITING or any(map(mine, _paths(error)))):
            raise
        before = "what was there is as it was" if os.path.lexists(out) else "nothing was written there"
        raise OSError(error.errno, f"{reason(error, out)}; {before}.  {advice(error, out)}{again}") from error


def reason(error: OSError, out: Path) -> str:
    number = error.errno
    if number in FULL:
        quota = " (the user's quota is used up)" if number == errno.EDQUOT else ""
        return f"no space left while writing {out}{quota}"
    known = {
        errno.EFBIG: f"a file of {out} is larger than its file system or `ulimit -f` allows",
        errno.EROFS: f"{out} cannot be written: it is on a file system that is read-only",
        errno.EACCES: f"no permission to write {out}",
        errno.EPERM: f"no permission to write {out}",
        errno.ENAMETOOLONG: f"the name of {out} is too long for its file system",
        errno.EEXIST: f"{out} cannot be a folder: a part of its path is a file",
        errno.ENOTDIR: f"{out} cannot be a folder: a part of its path is a file",
        errno.EXDEV: f"{out} is a file system of its own, which cannot be replaced in one step",
        errno.EBUSY: f"{out} is in use (is it a mount point?) and cannot be replaced in one step",
    }
    return (known.get(number) if number else None) or f"{out} cannot be written: {error.strerror}"


def advice(error: OSError, out: Path) -> str:
    number = error.errno
    if number in FULL:
        return ROOM.capitalize()
    if number in (errno.EACCES, errno.EPERM):
        return f"Choose another folder, or ask for the right to write in {out.absolute().parent}"
    if number == errno.ENAMETOOLONG:
        return "Choose a shorter one"
    if number in (errno.EXDEV, errno.EBUSY):
        return "Choose a folder in it"
    if number == errno.EFBIG:
        return "Choose another disk, or raise the limit"
    return "Choose another folder"


def in_words(error: Exception) -> str:
    """An error; one of the operating system without its number, the path first."""
    if not isinstance(error, OSError) or error.strerror is None:
        return str(error)
    text = error.strerror if error.filename is None else f"{os.fsdecode(error.filename)}: {error.strerror}"
    if error.errno in FULL and ROOM not in text.lower():  # where `explained` has said so
        text += f": {ROOM}"
    elif error.errno in (errno.EACCES, errno.EPERM):
        text += ": choose another place, or ask for the right to use this one"
    elif error.errno in (errno.EMFILE, errno.ENFILE):
        text += ": close some programs, or raise `ulimit -n`"
    return text


def _paths(error: OSError) -> list[Path]:
    names = (error.filename, error.filename2)
    return [Path(os.fsdecode(name)).absolute() for name in names if isinstance(name, (str, bytes, os.PathLike))]
