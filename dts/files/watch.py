"""Files that must not change while they are read."""

import os
from collections.abc import Callable
from pathlib import Path

from dts.files.place import expanded

SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".json")


class Changed(ValueError):
    """A file was replaced or written to between its first and its last reading."""


class Watch:
    """What the files of some sources were like when this was made: size, time of the last change, and which file.

    sources: folders or files; anything else (hub ids, models in memory) is passed over.
    """

    def __init__(self, *sources):
        self.seen: dict[Path, tuple[int, int, int, int] | None] = {}
        self.also(*sources)

    def also(self, *sources) -> None:
        """Further sources, from now on."""
        self.seen |= {file: _state(file) for source in sources for file in _files(source) if file not in self.seen}

    def check(self) -> None:
        """Raises Changed with every file that is another one by now."""
        now = {file: _state(file) for file in self.seen}
        wrong = [
            f"{file} {'is gone' if now[file] is None else 'changed'}"
            for file, state in self.seen.items()
            if now[file] != state
        ]
        if wrong:
            raise Changed(
                "what was being read changed meanwhile, so the result would be of neither: "
                f"{'; '.join(wrong)}.  Nothing was written; run again when nobody writes there"
            )

    def during(self, progress: Callable[[int, int, str], None] | None) -> Callable[[int, int, str], None]:
        """A progress that checks each time, then says it to the one that is given."""

        def checked(done: int, total: int, name: str) -> None:
            self.check()
            if progress is not None:
                progress(done, total, name)

        return checked


def _files(source) -> list[Path]:
    if not isinstance(source, (str, os.PathLike)):
        return []
    path = expanded(source)
    if path.is_dir():
        return sorted(file for file in path.iterdir() if file.suffix in SUFFIXES and file.is_file())
    return [path] if path.is_file() else []


def _state(file: Path) -> tuple[int, int, int, int] | None:
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
