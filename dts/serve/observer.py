"""What the engine says of itself as it works; `dts.serve.metrics` makes figures of it."""

from __future__ import annotations

from dts.serve.job import Row


class Observer:
    """Hears and does nothing.  All are called by the engine's thread."""

    def started(self, row: Row, waited: float) -> None:
        """A row left the queue after so many seconds."""

    def token(self, row: Row, seconds: float) -> None:
        """A row has a token; seconds: since the request came, where it is the row's first, else since the last."""

    def loaded(self, name: str, seconds: float) -> None:
        """A task was loaded."""
