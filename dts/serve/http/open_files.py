"""How many connections may be open: where a process has all the files that it may have, it cannot read adapters any
more, and asyncio tries to take connections in again and again, with a traceback for each."""

from __future__ import annotations

from dataclasses import dataclass

try:
    import resource
except ImportError:  # Windows, whose sockets are no files
    resource = None  # type: ignore[assignment]

MOST = 65536  # files: more are never asked for


@dataclass(frozen=True)
class Room:
    """connections: that may be open;  backlog: that may wait to be taken in, all of which asyncio takes in at once."""

    connections: int
    backlog: int

    @classmethod
    def of(cls, files: int) -> Room:
        """Half of the files for connections, a quarter for those that come at once, the rest for all else."""
        return cls(max(files // 2, 1), max(min(files // 4, 2048), 1))


def room() -> Room:
    """As many as the system lets this process have, which it is asked for."""
    if resource is None:
        return Room.of(MOST)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    soft, hard = (MOST if limit == resource.RLIM_INFINITY else limit for limit in (soft, hard))
    wanted = min(hard, MOST)
    if soft < wanted:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
            soft = wanted
        except (OSError, ValueError):  # some systems have limits below the one that they tell
            pass
    return Room.of(min(soft, MOST))
