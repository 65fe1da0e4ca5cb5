"""One writer at a time: a locked file that says who holds it.

Where the file system has ``flock``, the kernel lets go of the lock of a process that dies, however it dies, and two
threads of one process keep each other out too.  Elsewhere the file's existence is the lock, and the process named in
it is looked for: one that is gone, or whose number another process has by now, does not block.
"""

import errno
import json
import os
import socket
import time
import uuid
import weakref
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

NO_FLOCK = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL)
_open: weakref.WeakSet = weakref.WeakSet()  # locks of this process


class Busy(OSError):
    """Another process, or thread, is writing to the same place."""


class Lock:
    """Holds ``file`` until it is released; raises Busy, with the owner's process number and start, if it is held.

    target: the place that is written to, for the message.
    """

    def __init__(self, file: Path, target: Path):
        self.file, self.target = file, target
        self.descriptor = _flocked(file, target) if fcntl else None
        if self.descriptor is None:
            self.descriptor = _exclusive(file, target)
        os.ftruncate(self.descriptor, 0)
        os.write(self.descriptor, json.dumps(_me()).encode())
        _open.add(self)

    def release(self) -> None:
        """Lets go, and removes the file: first, so that nobody takes one that is about to go."""
        if self.descriptor is None:
            return
        try:
            self.file.unlink(missing_ok=True)
        except OSError:  # a file system that became read-only: whoever comes next finds it without an owner
            pass
        finally:
            os.close(self.descriptor)
            self.descriptor = None


def _flocked(file: Path, target: Path) -> int | None:
    """A descriptor of the locked file; None if its file system has no such locks."""
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                owner = _settled(file)
                if owner is None and not file.exists():
                    continue  # let go of and removed since: free
                raise Busy(_refusal(target, owner)) from None
            if error.errno not in NO_FLOCK:
                raise
            if not _owner(file):  # made just now by the line above
                file.unlink(missing_ok=True)
            return None
        except BaseException:
            os.close(descriptor)
            raise
        if _is_still(descriptor, file):
            return descriptor
        os.close(descriptor)  # its last owner removed it after it was opened here


def _is_still(descriptor: int, file: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), file.stat())
    except FileNotFoundError:
        return False


def _exclusive(file: Path, target: Path) -> int:
    """A descriptor of a file that was not there before, without ``flock``."""
    while True:
        try:
            return os.open(file, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        except FileExistsError:
            owner = _settled(file)
            if owner is not None and not gone(owner):
                raise Busy(_refusal(target, owner, file)) from None
            taken = file.with_name(f"{file.name}.{uuid.uuid4().hex[:8]}")
            try:
                file.rename(taken)
            except FileNotFoundError:
                continue
            if _owner(taken) != owner:  # somebody else was quicker, and this one is his
                os.link(taken, file)
            taken.unlink()


def owner_of(file: Path) -> dict | None:
    """Who holds the lock, if that process is alive; a look only, which takes nothing."""
    owner = _owner(file)
    return None if owner is None or gone(owner) else owner


def refuse(file: Path, target: Path) -> None:
    """Raises Busy if a living process holds the lock."""
    owner = owner_of(file)
    if owner is not None:
        raise Busy(_refusal(target, owner))


def gone(owner: dict) -> bool:
    """Is that process certainly no more?  Of another machine's nothing is known."""
    if owner.get("host") != socket.gethostname():
        return False
    try:
        os.kill(owner["pid"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    started = _started(owner["pid"])
    return None not in (started, owner.get("started")) and started != owner["started"]


def _me() -> dict:
    pid = os.getpid()
    return {
        "pid": pid,
        "started": _started(pid),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
        "host": socket.gethostname(),
    }


def _started(pid: int) -> int | None:
    """When a process started, in the kernel's ticks; two processes of one number differ in it.  None if unknown."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return None


def _owner(file: Path) -> dict | None:
    try:
        owner = json.loads(file.read_text())
        return owner if isinstance(owner, dict) and isinstance(owner.get("pid"), int) else None
    except (OSError, ValueError):
        return None


def _settled(file: Path) -> dict | None:
    """The owner, who may have locked the file this instant and not written his name yet; None if it is gone."""
    for _ in range(200):
        owner = _owner(file)
        if owner is not None or not file.exists():
            return owner
        time.sleep(0.01)
    return None


def _refusal(target: Path, owner: dict | None, file: Path | None = None) -> str:
    who = "another process"
    if owner:
        where = "" if owner.get("host") == socket.gethostname() else f" on {owner.get('host')}"
        who = f"process {owner['pid']}{where}, started {owner.get('since')},"
        who += " (this one, in another thread)" if owner["pid"] == os.getpid() and not where else ""
    away = f"; if that process is no more, remove {file}" if owner and file and "on " in who else ""
    return f"{target} is being written by {who} and nothing was changed: wait for it, or choose another folder{away}"


def _forget() -> None:
    """A forked child has no part in its parent's locks: they must go when the parent goes."""
    for lock in list(_open):
        if lock.descriptor is not None:
            os.close(lock.descriptor)
            lock.descriptor = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
