"""The checkpoint that a base model in memory was made from."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from dts.adapter import Adapter
from dts.checkpoint import open_checkpoint
from dts.checkpoint.fingerprint import fingerprint


@dataclass
class Base:
    """Which checkpoint a model was made from.

    missing: parameters of the model that the checkpoint lacks: random, until a task brings its own.
    options: which of a hub id's or folder's checkpoints it is: revision, subfolder, variant, cache_dir, token, ...
    """

    path: str | Path
    missing: frozenset[str] = frozenset()
    options: dict[str, Any] = field(default_factory=dict, repr=False)

    @cached_property
    def fingerprint(self) -> str:
        return fingerprint(open_checkpoint(self.path, **self.options))

    def check(self, adapters: Iterable[Adapter]) -> None:
        """Raises ValueError if an adapter says that it was made for another base."""
        expected = {a.name: (a.config or {}).get("base", {}).get("fingerprint") for a in adapters}
        wrong = [
            f"{name} was made for {value}" for name, value in expected.items() if value and value != self.fingerprint
        ]
        if wrong:
            raise ValueError(f"{self.path} (fingerprint {self.fingerprint}) is not the base of: {'; '.join(wrong)}")
