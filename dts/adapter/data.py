"""What the artefact of one task is made of, in memory."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from dts.adapter.account import Account
from dts.adapter.digests import identity
from dts.adapter.entries import Entry
from dts.adapter.predict import Prediction
from dts.adapter.route import InputStatistics


@dataclass
class AdapterData:
    """The fields of an `Adapter`, and what is plain from them; whoever reads, writes or applies one takes this."""

    name: str
    class_names: list[str] | None
    description: str | None
    kind: str  # task | difference
    method: str
    config: dict = field(repr=False)
    entries: dict[str, Entry] = field(repr=False)
    model_config: dict | None = field(default=None, repr=False)
    folder: Path | None = None
    files: dict[str, Path] = field(default_factory=dict, repr=False)
    prediction: Prediction | None = field(default=None, repr=False)
    account: Account | None = field(default=None, repr=False)
    inputs: InputStatistics | None = field(default=None, repr=False)

    @property
    def digest(self) -> str:
        """16 hex digits over all that it is: another adapter in its folder has others, see `load_same`."""
        return identity(self.config)

    @property
    def nbytes(self) -> int:
        """Bytes of all files of the adapter's folder."""
        return self.config["bytes"]

    @property
    def beside(self) -> int:
        """Bytes of ``nbytes`` that are what a router knows."""
        return 0 if self.inputs is None else self.inputs.nbytes

    @property
    def amr(self) -> float:
        """``nbytes`` / bytes of the base in fp32."""
        return self.config["amr"]

    @property
    def brings_own(self) -> bool:
        """Whether it has tensors that only the fine-tune has, heads among them; its configuration is enough to know."""
        if self.entries:
            return any(entry.task_only for entry in self.entries.values())
        return any(row.get("task_only") for row in self.config.get("tensors", {}).values())

    @classmethod
    def of(cls, config: dict, entries: dict[str, Entry], folder: Path | None = None, files=None) -> Self:
        task = config["task"]
        return cls(
            task["name"],
            task["class_names"],
            task["description"],
            config["kind"],
            config["method"],
            config,
            entries,
            config["model_config"],
            folder,
            files or {},
        )
