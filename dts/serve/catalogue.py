"""The adapters that may be asked for by name: folders of one directory, and nothing outside of it."""

from __future__ import annotations

import errno
import os
import re
import stat
import threading
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from dts.adapter import Adapter, AdapterError
from dts.adapter.adapter import loaded
from dts.adapter.digests import config_digest
from dts.adapter.folder import CONFIG, Described, read_about, read_config
from dts.checkpoint.errors import some
from dts.files import in_words, real
from dts.nn.selection import AUTO
from dts.nn.sizes import task_bytes
from dts.serve.refused import Refused

# of a task: no separators, no dots in front, no ":" or ",", and not what asks for one to be chosen
NAME = re.compile(rf"(?!{AUTO}$)[A-Za-z0-9][\w.-]{{0,127}}", re.ASCII)
WRITTEN = 50  # names that an error lists
OF_THE_FOLDER = (FileNotFoundError, NotADirectoryError, IsADirectoryError)  # what is there is no adapter
READ = 4  # adapters that were just read about, as a rule because they are about to be loaded


@dataclass(frozen=True)
class _Known:
    """What stood in a folder when its configuration was in this state;  nbytes: that a task of it takes in memory."""

    state: tuple[int, ...]
    adapter: Adapter
    nbytes: int

    @classmethod
    def of(cls, found: Described, folder: Path, state: tuple[int, ...]) -> _Known:
        return cls(state, _described(found.config, folder), task_bytes(found.config, found.layout))


def _described(config: dict, folder: Path) -> Adapter:
    """An adapter without its tensors.  Of rows, which take more memory than what they describe, only those that tell
    what class a model has to be."""
    rows = {key: row for key, row in config["tensors"].items() if row.get("task_only")}
    files = {file: folder / file for file in config["files"]}
    return Adapter.of(config | {"tensors": rows, "dropped": {}}, {}, folder, files)


class Catalogue:
    """Names and what stands on disk under them: each folder of ``root``, and names that an administrator gave.

    root: the folder of adapters;  base_name: how the base is asked for;  fingerprint: of the base, or of the checkpoint
    that it is the quantised form of, None: of a quantised base where nobody says that, and only its weights can tell.
    quantised: adapters may be made for the numbers of its codes;  paths: of the base, which no client is told.
    Any thread may ask.  What is returned are adapters without their tensors: configuration and files only.
    """

    def __init__(
        self,
        root: str | Path,
        base_name: str,
        fingerprint: str | None,
        quantised: bool = False,
        paths: Collection[str] = (),
    ):
        self.root = real(root)
        self.base_name = base_name
        self.fingerprint, self.quantised, self.paths = fingerprint, quantised, paths
        self._given: dict[str, Path] = {}
        self._read: dict[Path, _Known] = {}
        self._fresh: dict[Path, tuple[tuple[int, ...], Described]] = {}
        self._held: dict[str, Adapter] = {}
        self._lock = threading.Lock()

    def names(self) -> list[str]:
        """Every name there is now, whether or not its adapter is whole.  Raises Refused (503) if it cannot be seen."""
        with self._lock:
            given = set(self._given)
        try:
            with os.scandir(self.root) as found:
                there = {one.name for one in found if NAME.fullmatch(one.name) and self._holds(one.name, one)}
        except FileNotFoundError:
            there = set()
        except OSError as error:
            raise _unreadable(f"the folder of adapters cannot be read now: {error.strerror or error}") from None
        return sorted((there | given) - {self.base_name})

    def _holds(self, name: str, entry: os.DirEntry[str] | None = None) -> bool:
        """entry: of the root, where it is there: what is no link leads nowhere, and need not be followed."""
        try:
            if entry is not None and not entry.is_symlink():
                return stat.S_ISREG(os.stat(os.path.join(entry.path, CONFIG)).st_mode)
            folder = real(self.root / name)
            return folder.is_relative_to(self.root) and stat.S_ISREG(os.stat(folder / CONFIG).st_mode)
        except OF_THE_FOLDER:
            return False
        except OSError as error:  # of a folder that lost its permission nobody knows: who asks for it is told why
            return error.errno not in (errno.ELOOP, errno.ENAMETOOLONG)

    def give(self, name: str, path: str | None = None) -> None:
        """Let a name mean the adapter at ``path``, which lies in the root (relative to it, or absolute)."""
        if not NAME.fullmatch(name) or name == self.base_name:
            what = f"letters, digits, '_', '-' and '.', not {AUTO!r} and not the base's name"
            raise Refused(f"{name!r} cannot be a task's name: {what}")
        folder = self.root if "\0" in (path or name) else real(self.root / (path or name))
        if not folder.is_relative_to(self.root) or folder == self.root:
            raise Refused(f"{path or name!r} is not in the folder of adapters", param="path")
        if not os.path.isfile(folder / CONFIG):  # of a path that is too long pathlib raises an error
            raise Refused(f"there is no adapter at {path or name!r} in the folder of adapters", 404, param="path")
        with self._lock:
            if folder != self.root / name:
                self._given[name] = folder
            else:
                self._given.pop(name, None)

    def given(self, name: str) -> Path | None:
        """The place that a name was given, None if it means the folder of that name."""
        with self._lock:
            return self._given.get(name)

    def all_given(self) -> dict[str, Path]:
        """Every name that was given a place, with it."""
        with self._lock:
            return dict(self._given)

    def restore(self, name: str, before: Path | None) -> None:
        """Let a name mean what it did before it was given."""
        with self._lock:
            if before is None:
                self._given.pop(name, None)
            else:
                self._given[name] = before

    def take(self, name: str) -> None:
        """Forget a name that was given."""
        with self._lock:
            self._given.pop(name, None)

    def folder(self, name: str) -> Path:
        """Where a name's adapter is; raises Refused (404) that lists the names there are."""
        with self._lock:
            given = self._given.get(name)
        if given is not None:
            return given
        if not NAME.fullmatch(name) or not self._holds(name):
            names = self.names()
            raise Refused(
                f"the model {name[:100]!r} does not exist; there are {some([self.base_name, *names], WRITTEN)}",
                404,
                "model_not_found",
                "model",
            )
        return real(self.root / name)

    def hold(self, name: str, adapter: Adapter) -> None:
        """What was loaded under a name is what it means until it is `release`d, whatever is written into its folder."""
        assert adapter.folder is not None
        held = _described(adapter.config, adapter.folder)
        with self._lock:
            self._held[name] = held

    def release(self, name: str) -> None:
        """A name means what is in its folder again."""
        with self._lock:
            self._held.pop(name, None)

    def get(self, name: str) -> Adapter:
        """The adapter of a name, without its tensors and their rows but of those that only it has: what is in memory,
        else what is on disk.  Raises Refused: 404 unknown, 409 damaged, 400 another base, 503 not to be read now."""
        with self._lock:
            held = self._held.get(name)
        if held is None:
            return self.on_disk(name)
        self.folder(name)
        return held

    def on_disk(self, name: str) -> Adapter:
        """What would be loaded now; raises what `get` does."""
        return self._known(name).adapter

    def load(self, name: str) -> Adapter:
        """All of its adapter, every digest compared; what `on_disk` has just read of it is not read again.  Raises what
        that does."""
        known = self._known(name)
        folder = self.folder(name)
        with self._lock:
            state, found = self._fresh.pop(folder, (None, None))
        try:
            return loaded(folder, described=found if state == known.state else None)
        except (AdapterError, OSError) as error:
            raise self.damaged(name, error) from None

    def size_of(self, name: str) -> int:
        """Bytes that its task takes in memory, if it is loaded now; raises what `get` does."""
        return self._known(name).nbytes

    def digest_of(self, name: str) -> str:
        """Of the whole configuration of its adapter, of which `get` gives less; read anew, as only vLLM's plugin asks
        for it.  Raises what `get` does."""
        self._known(name)
        try:
            return config_digest(read_config(self.folder(name)))
        except (AdapterError, OSError) as error:
            raise self.damaged(name, error) from None

    def _known(self, name: str) -> _Known:
        folder = self.folder(name)
        try:
            about = os.stat(folder / CONFIG)
            state = (about.st_mtime_ns, about.st_size, about.st_ino)
            with self._lock:
                known = self._read.get(folder)
            if known is None or known.state != state:
                found = read_about(folder)
                known = _Known.of(found, folder, state)
                with self._lock:
                    self._read[folder] = known
                    self._fresh[folder] = state, found
                    while len(self._fresh) > READ:
                        del self._fresh[next(iter(self._fresh))]
        except (AdapterError, OSError) as error:
            raise self.damaged(name, error) from None
        base = known.adapter.config.get("base", {})
        made_for = base.get("fingerprint")
        told_when_loaded = self.fingerprint is None or self.quantised and base.get("quantised")
        if made_for and made_for != self.fingerprint and not told_when_loaded:
            ours = f"fingerprint {self.fingerprint}{', before it was quantised' if self.quantised else ''}"
            why = f"{base.get('name')} (fingerprint {made_for}), and this is {self.base_name} ({ours})"
            raise self.other_base(name, why)
        return known

    def other_base(self, name: str, why: str) -> Refused:
        """What a client is told of an adapter that was made for another base."""
        for path in self.paths:
            why = why.replace(path, self.base_name)
        return Refused(f"the adapter {name!r} is of another base: {why}", 400, "other_base", "model")

    def damaged(self, name: str, error: Exception) -> Refused:
        """What a client is told of an adapter that cannot be read: without the places of this machine.

        503 where the machine does not give what may be whole: no file handle is left, a permission is lacking."""
        words = in_words(error).replace(f"{self.root}{os.sep}", "")
        if isinstance(error, OSError) and not isinstance(error, OF_THE_FOLDER):
            return _unreadable(f"the adapter {name!r} cannot be read now: {words}")
        return Refused(f"the adapter {name!r} cannot be used: {words}", 409, "damaged_adapter", "model")


def _unreadable(message: str) -> Refused:
    return Refused(message, 503, "adapter_unreadable", "model", retry_after=5)
