"""A file that a library writes by its name is built beside its place, and takes it when it is whole."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dts.files.errors import explained
from dts.files.place import sync

PROBE = 1 << 20  # bytes


@contextmanager
def one_file(out: Path) -> Iterator[Path]:
    """Yields a path of the same name in a folder of its own; then it, and what lies beside it there, replaces ``out``.

    Two runs that write one file do not meet.  Errors of writing are OSErrors in words about ``out``, whatever the
    library makes of a full disk.
    """
    target = out.absolute()
    beside = f".{out.name[:100]}."

    def mine(path: Path) -> bool:
        return path in (target, *target.parents) or str(path).startswith(str(target.with_name(beside)))

    with explained(out, mine):
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=beside) as folder:
            try:
                yield Path(folder) / out.name
            except Exception:
                _probe(Path(folder))
                raise
            for file in sorted(Path(folder).iterdir(), key=lambda file: file.name == out.name):
                sync(file)
                os.replace(file, out.with_name(file.name))
            sync(out.absolute().parent)


def _probe(folder: Path) -> None:
    """Raises the system's own error where nothing can be written: numpy and torch tell none of its number."""
    with open(folder / "probe", "wb") as file:
        file.write(bytes(PROBE))
    (folder / "probe").unlink()
