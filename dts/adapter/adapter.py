"""The artefact of one task, in memory."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from dts.adapter.entries import Entry


@dataclass
class Adapter:
    """All that turns the base into one fine-tune.

    config: the content of ``dts_config.json``;  model_config: the fine-tune's ``config.json`` if it had one;
    entries: by the fine-tune's tensor names;  folder: where it was loaded from or saved to.
    """

    name: str
    class_names: list[str] | None
    description: str | None
    kind: str  # task | difference
    method: str
    config: dict
    entries: dict[str, Entry] = field(repr=False)
    model_config: dict | None = field(default=None, repr=False)
    folder: Path | None = None
