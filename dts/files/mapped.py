"""Files whose pages are this process's memory: what is written into one is what was read from it."""

import os
from bisect import bisect_right
from collections.abc import Iterable
from pathlib import Path

MAPS = Path("/proc/self/maps")  # of Linux; elsewhere nothing is known
File = tuple[str, int]  # its path, and the number that it has on its disk whatever its name becomes


def mapped_files(addresses: Iterable[int]) -> set[File]:
    """Those that any of these addresses of memory is a page of."""
    try:
        rows = [line.split(maxsplit=5) for line in os.fsdecode(MAPS.read_bytes()).splitlines()]
    except OSError:
        return set()
    ranges = [tuple(int(end, 16) for end in row[0].split("-")) for row in rows]  # ascending
    starts, found = [start for start, _ in ranges], set[File]()
    for address in addresses:
        at = bisect_right(starts, address) - 1
        if at >= 0 and address < ranges[at][1] and len(rows[at]) == 6 and rows[at][5].startswith("/"):
            found.add((rows[at][5], int(rows[at][4])))
    return found


class Mapped:
    """Files of `mapped_files`, watched from now on.  One that another takes the place of stays as it was."""

    def __init__(self, files: Iterable[File] = ()):
        self._seen = {file: state for file in files if (state := _state(file)) is not None}

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self._seen)

    def altered(self) -> list[str]:
        """Those that were written to, or cut off."""
        now = {file: _state(file) for file in self._seen}
        return sorted(file[0] for file, state in self._seen.items() if now[file] not in (state, None))


def _state(file: File) -> tuple[int, int] | None:
    """(bytes, time of the last change); None where its path is another one's by now."""
    try:
        found = os.stat(file[0])
    except OSError:
        return None
    return (found.st_size, found.st_mtime_ns) if found.st_ino == file[1] else None
