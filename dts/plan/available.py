"""Memory that a process may still take: of the machine, of the control groups that it runs in, of a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

PROC, GROUPS = Path("/proc"), Path("/sys/fs/cgroup")
_VERSION_1 = "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
_VERSION_2 = "memory.max", "memory.current", "inactive_file"


def available(device: torch.device) -> int | None:
    """Bytes, at least 0; None where the system does not say."""
    if device.type == "cuda":
        free: int = torch.cuda.mem_get_info(device)[0]
        return free
    return None if device.type != "cpu" else min(_of_this_host(), default=None)


def _of_this_host() -> Iterator[int]:
    for line in _lines(PROC / "meminfo"):
        if line.startswith("MemAvailable:"):
            yield int(line.split()[1]) * 1024
    for line in _lines(PROC / "self/cgroup"):
        _, controllers, path = line.split(":", 2)
        if not controllers:
            yield from _of_groups(GROUPS, path, *_VERSION_2)
        elif "memory" in controllers.split(","):
            yield from _of_groups(GROUPS / "memory", path, *_VERSION_1)


def _of_groups(root: Path, path: str, limit: str, usage: str, given_back: str) -> Iterator[int]:
    """What a group, and each that it is in, leaves of its limit.  In a container its own may lie at the root.

    given_back: the row of memory.stat for pages of files that the system drops where memory is needed.
    """
    own = root / path.strip("/")
    for group in (own, *own.parents):
        if not group.is_relative_to(root):
            return
        try:
            most, used = int((group / limit).read_text()), int((group / usage).read_text())
        except (OSError, ValueError):  # no such group here, or no limit: "max"
            continue
        rows = dict(row.split() for row in _lines(group / "memory.stat"))
        yield max(most - used + int(rows.get(given_back, 0)), 0)


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text().splitlines()
    except OSError:
        return []
