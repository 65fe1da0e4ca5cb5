"""A folder is built beside its place and takes it when it is whole; what was there is kept until then.

Of a folder NAME these are the neighbours while it is written, and what a killed run leaves of them:

    .NAME.lock       held by the one run that writes NAME (`dts.files.lock`)
    .NAME.saving     run.json, and whole/: the new folder, before it takes its place; the old one just afterwards
    .NAME.partial    the same of a run that can be continued, with what it has finished so far
    .NAME.old        the old folder for a moment, where two folders cannot be exchanged in one step

The next run removes them, or puts the old folder back, or says what they are.
"""

import errno
import hashlib
import json
import os
import secrets
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from dts.files.errors import explained, in_words
from dts.files.lock import Lock, refuse
from dts.files.place import exchange, real, sync, sync_tree, write_text

SAVING, PARTIAL, OLD, LOCK = "saving", "partial", "old", "lock"
RUN = "run.json"  # in a folder of ours, from its first moment to its last
LAST = ("dts_config.json", "config.json")  # without it a folder is no adapter, or no model: moved last
OVERTAKEN = "another run began to write {} while this one did: nothing was changed there"
LONGEST = 255  # bytes of a file's name


class Leftover(UserWarning):
    """Something of a run that was killed, and what became of it."""


def hidden(out: Path, suffix: str) -> Path:
    """The neighbour of a folder, ``.NAME.suffix``; of "." and ".." too, which have no name of their own.

    Within the folder itself where nothing can be made beside it: a mount point, or in a parent that is read-only.
    """
    target = Path(os.path.realpath(out))
    name = target.name
    if len(os.fsencode(name)) > LONGEST - len(suffix) - 2:
        name = f"{name[:40]}.{hashlib.sha256(os.fsencode(name)).hexdigest()[:16]}"
    return (target if _stays(target) else target.parent) / f".{name}.{suffix}"


def check_place(out: Path, overwrite: bool, what: str, ours: Callable[[Path], bool]) -> None:
    """Raises FileExistsError unless ``out`` is free, empty, or ours and to be overwritten; what: "an adapter"."""
    with explained(out, lambda path: True):
        if not out.exists() or out.is_dir() and vacant(out):
            return
    if not out.is_dir():
        raise FileExistsError(f"{out} is a file: choose a folder")
    if not ours(out):
        raise FileExistsError(f"{out} exists and is not {what}: choose another folder")
    if not overwrite:
        raise FileExistsError(
            f"{out} exists: choose another folder, or have it overwritten by overwrite=True (--overwrite)"
        )


def check_free(out: str | Path) -> None:
    """Raises Busy if another run is writing to ``out``; one that starts just now is found out by `building`."""
    out = Path(out)
    refuse(hidden(out, LOCK), out)


def vacant(folder: Path) -> bool:
    """Has it nothing but what a run leaves there?"""
    ours = {hidden(folder, suffix).name for suffix in (SAVING, PARTIAL, LOCK)} if _stays(real(folder)) else set()
    return all(path.name in ours for path in folder.iterdir())


def set_aside(out: str | Path) -> str:
    """What is to be said of a folder that is not there because a run was killed while it replaced it; else nothing."""
    out = Path(out)
    old = hidden(out, OLD)
    if out.exists() or not old.is_dir():
        return ""
    return (
        f": a run was killed while it replaced it, and what was there is in {old}; rename it back, or write to "
        f"{out} again"
    )


@contextmanager
def building(out: str | Path, check: Callable[[], None], resumable: bool = False, resume: bool = False) -> Iterator:
    """Yields the `Building` of ``out``; nobody else builds there meanwhile, another process or another thread.

    check: raises if ``out`` must not be written to;  resumable: what was finished stays after an error, and is found
    again with ``resume``.  Raises Busy, what ``check`` raises, and OSError in words about ``out``.
    """
    out = Path(out)
    check()
    target = Path(os.path.realpath(out))
    neighbours = tuple(str(hidden(out, suffix)) for suffix in (SAVING, PARTIAL, OLD, LOCK))

    def mine(path: Path) -> bool:
        return path in (target, *target.parents) or target in path.parents or str(path).startswith(neighbours)

    again = ", with resume to go on from what is done" if resumable else ""
    with explained(out, mine, again):
        hidden(out, LOCK).parent.mkdir(parents=True, exist_ok=True)
        lock = Lock(hidden(out, LOCK), out)
        try:
            _recover(out)
            check()
            if not resumable and hidden(out, PARTIAL).exists():
                _say(
                    f"an interrupted compression to {out} is kept in {hidden(out, PARTIAL)}: compress with resume "
                    "goes on from it, without starts anew; it can be removed"
                )
            place = Building(out, PARTIAL if resumable else SAVING, resume)
            try:
                yield place
            finally:
                if not resumable:
                    place.clear()
        finally:
            lock.release()


class Building:
    """A folder that is being built.

    work: where, and what a resumable run keeps beside it;  run: 16 hex digits of this run and those it continues.
    """

    def __init__(self, out: Path, suffix: str, resume: bool = False):
        self.out, self.target, self.work = out, real(out), hidden(out, suffix)
        self.whole = self.work / "whole"
        run = _run_of(self.work) if resume else None
        if run is None and not (resume and self.work.is_dir() and _is_ours(self.work)):
            _remove(self.work)
            self.work.mkdir()
        self.run = run or secrets.token_hex(8)
        if run is None:
            self._note({})

    def fresh(self) -> Path:
        """The empty folder to build in."""
        if self.whole.exists():
            shutil.rmtree(self.whole)
        self.whole.mkdir()
        return self.whole

    def finish(self) -> None:
        """The folder takes its place; the old one goes.  Killed anywhere in here, one of the two is there whole."""
        if _run_of(self.work) != self.run:
            raise FileExistsError(OVERTAKEN.format(self.out))
        sync_tree(self.whole)
        here = _is_working_folder(self.target)
        if not self.target.exists():
            os.rename(self.whole, self.target)
        elif vacant(self.target):
            if here or os.name == "nt" or _stays(self.target):
                self._fill()
            else:
                os.rename(self.whole, self.target)  # an empty folder gives way
        elif _stays(self.target):
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), str(self.target))
        elif not exchange(self.whole, self.target):
            self._set_aside()
        sync(self.target.parent)
        if here:
            os.chdir(self.target)  # not the old folder, which has no name any more
        self.clear()

    def clear(self) -> None:
        """Removes what was built, or what was replaced; of what cannot be removed a warning says where it is."""
        try:
            if _run_of(self.work) in (self.run, None):  # else another run's
                _remove(self.work)
        except OSError as error:
            _say(f"{self.work} is left over, and can be removed: {in_words(error)}")

    def _set_aside(self) -> None:
        """In two steps, between which nothing is at the place; `_recover` puts the old folder back."""
        old = hidden(self.out, OLD)
        self._note({"aside": True})
        os.rename(self.target, old)
        try:
            os.rename(self.whole, self.target)
        except BaseException:
            os.rename(old, self.target)
            raise
        os.rename(old, self.whole)

    def _fill(self) -> None:
        """Moves the files into an empty folder, which stays the same one: it may be where a shell is working."""
        names = sorted((path.name for path in self.whole.iterdir()), key=lambda name: (name in LAST, name))
        self._note({"filling": names})
        try:
            for name in names:
                os.rename(self.whole / name, self.target / name)
        except BaseException:
            _empty_again(self.target, self.whole, names)
            raise
        sync(self.target)

    def _note(self, more: dict) -> None:
        write_text(self.work / RUN, json.dumps({"run": self.run} | more))


def _say(text: str) -> None:
    warnings.warn(text, Leftover, stacklevel=5)


def _recover(out: Path) -> None:
    """What a run left that was killed: the old folder is put back, what is half done removed."""
    target, old = real(out), hidden(out, OLD)
    for suffix in (SAVING, PARTIAL):
        work = hidden(out, suffix)
        note = _note_of(work)
        if isinstance(note.get("filling"), list) and target.is_dir():
            _empty_again(target, work / "whole", note["filling"])
        if note.get("aside") and old.is_dir() and target.exists() and not (work / "whole").exists():
            os.rename(old, work / "whole")
    if old.is_dir() and not target.exists():
        os.rename(old, target)
        _say(f"a run was killed while it replaced {out}: what was there is there again")
    elif old.is_dir() and vacant(target):
        raise FileExistsError(
            f"a run was killed while it replaced {out}, and what was there is in {old}: rename it back, or remove it"
        )
    elif old.is_dir():
        _say(f"{old} is what {out} was before a run that was killed; it can be removed")
    if hidden(out, SAVING).exists():
        _remove(hidden(out, SAVING))


def _empty_again(target: Path, whole: Path, names: list[str]) -> None:
    """Takes back the files that were moved, unless that was all of them."""
    moved = [name for name in names if not (whole / name).exists()]
    for name in moved if len(moved) < len(names) else ():
        (target / name).unlink(missing_ok=True)


def _remove(work: Path) -> None:
    """Removes a folder of ours, its mark last, so that it is known for ours while anything is left of it."""
    if not work.exists():
        return
    if not _is_ours(work):
        raise FileExistsError(f"{work} is in the way: it was not made by dts and is not touched; move it elsewhere")
    for path in sorted(work.iterdir(), key=lambda path: path.name == RUN):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    work.rmdir()


def _is_ours(work: Path) -> bool:
    """Has it our mark, or that of version 0.1.0, a run's options or weights?"""
    if not work.is_dir():
        return False
    names = {path.name for path in work.iterdir()}
    unmarked = {name for name in names if name != RUN and not name.startswith(f".{RUN}.")}
    return not unmarked or RUN in names or not unmarked.isdisjoint(("options.json", "dts_model.safetensors"))


def _note_of(work: Path) -> dict:
    try:
        note = json.loads((work / RUN).read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return note if isinstance(note, dict) else {}


def _run_of(work: Path) -> str | None:
    return _note_of(work).get("run")


def _stays(target: Path) -> bool:
    """Is it a folder that cannot be replaced, but only filled?"""
    return os.path.isdir(target) and (os.path.ismount(target) or not os.access(target.parent, os.W_OK | os.X_OK))


def _is_working_folder(target: Path) -> bool:
    try:
        return target.samefile(os.curdir)
    except OSError:
        return False
