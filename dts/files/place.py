"""Files and folders that take their place in one step, and are on the disk when they do."""

import ctypes
import errno
import os
import secrets
import sys
from pathlib import Path

AT_FDCWD, RENAME_EXCHANGE = -100, 2  # of linux/fcntl.h and linux/fs.h
NOT_HERE = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP)


def exchange(one: Path, other: Path) -> bool:
    """Each takes the other's name, in one step; False, and nothing done, where the system or its disk cannot.

    renameat2(2) with RENAME_EXCHANGE.
    """
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):  # another system, or an older C library
        return False
    sys.audit("os.rename", one, other, -1, -1)
    if renameat2(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), ctypes.c_uint(RENAME_EXCHANGE)) == 0:
        return True
    number = ctypes.get_errno()
    if number in NOT_HERE:
        return False
    raise OSError(number, os.strerror(number), str(one), None, str(other))


def expanded(path: str | os.PathLike[str]) -> Path:
    """With ``~`` as a shell would have it, which sees none in ``--out=~/x``, in a file and in Python.

    Of a user that there is not it stays as it is: such a name may be a folder's.
    """
    return Path(os.path.expanduser(path))


def real(path: str | os.PathLike[str]) -> Path:
    """Absolute and without links; one that leads to itself stays, and is then no file and no folder."""
    return Path(os.path.realpath(path))


def within(folder: Path, path: Path) -> bool:
    """Does a file lie in the folder, links followed?  Those of a hub's cache lead to its own store."""
    folder, path = real(folder), real(path)
    stores = [folder] + [folder.parent.parent / "blobs"] * (folder.parent.name == "snapshots")
    return path.parent in stores


def sync(path: Path) -> None:
    """What was written to a file, or which names a folder has, is on the disk when this returns."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except PermissionError:
        if path.is_dir():  # Windows, which keeps folders itself
            return
        raise
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in NOT_HERE:  # a file system that does not know it for folders
            raise
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """`sync` of a folder and all that is in it."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            sync_tree(path)
        else:
            sync(path)
    sync(folder)


def write_text(path: str | Path, text: str) -> Path:
    """Writes a file of UTF-8 that is the old one or the new one whole, whoever looks and whatever happens."""
    path = Path(path)
    path = real(path) if path.is_symlink() else path
    unfinished = path.with_name(f".{path.name[:200]}.{secrets.token_hex(4)}")
    try:
        unfinished.write_text(text, "utf-8", newline="\n")
        sync(unfinished)
        os.replace(unfinished, path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
    sync(path.parent)
    return path
