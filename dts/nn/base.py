"""The checkpoint that a base model in memory was made from."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import nn

from dts.adapter import Adapter
from dts.checkpoint import Quantised, open_checkpoint
from dts.checkpoint.errors import some
from dts.checkpoint.fingerprint import fingerprint
from dts.nn.dequantise import quantised_weights
from dts.nn.evidence import differing, evidence
from dts.warn import warn


class QuantisedBase(UserWarning):
    """An adapter runs over a quantised form of the base that it was made for."""


class OtherBase(ValueError):
    """Adapters were made for another base than the one they are to run over.  why: of each, in words."""

    def __init__(self, message: str, why: str = ""):
        super().__init__(message)
        self.why = why or message


@dataclass
class Base:
    """Which checkpoint a model was made from.

    missing: parameters of the model that the checkpoint lacks: random, until a task brings its own.
    options: which of a hub id's or folder's checkpoints it is: revision, subfolder, variant, cache_dir, token, ...
    gguf: the file in the folder;  original: the checkpoint that the user says this is the quantised form of.
    """

    path: str | Path
    missing: frozenset[str] = frozenset()
    options: dict[str, Any] = field(default_factory=dict, repr=False)
    gguf: str | None = None
    original: str | Path | None = None

    @cached_property
    def fingerprint(self) -> str | None:
        """Of the checkpoint; None where it is quantised: its codes have none."""
        if self.gguf is not None:
            return None
        try:
            return fingerprint(open_checkpoint(self.path, **self.options))
        except Quantised:
            return None

    @cached_property
    def original_fingerprint(self) -> str | None:
        """Of the checkpoint that the user says this is the quantised form of."""
        return None if self.original is None else fingerprint(open_checkpoint(self.original))

    def check(self, adapters: Iterable[Adapter], model: nn.Module | None = None) -> None:
        """Raises OtherBase if an adapter says that it was made for another base.

        model: in memory; before there is one, what only it can tell is left open.
        Warns (`QuantisedBase`) of adapters that were made for the base as it was before it was quantised.
        """
        wrong = [words for adapter in adapters if (words := self._wrong(adapter, model))]
        if wrong:
            name = "which is quantised" if self.fingerprint is None else f"fingerprint {self.fingerprint}"
            why = "; ".join(wrong)
            raise OtherBase(f"{self.path} ({name}) is not the base of: {why}", why)

    def _wrong(self, adapter: Adapter, model: nn.Module | None) -> str | None:
        """Why this is not the adapter's base; None where it is, or only a model could tell."""
        section = (adapter.config or {}).get("base", {})
        made_for = section.get("fingerprint")
        if not made_for or made_for == self.fingerprint:
            return None
        for_codes = section.get("quantised")
        if self.fingerprint is not None and not for_codes:
            return f"{adapter.name} was made for {made_for}"
        if model is None:
            return None
        if self.original is not None and not for_codes:
            return self._not_of_original(adapter, model, made_for)
        if self.gguf is None and not quantised_weights(model):
            return f"{adapter.name} was made for the numbers of a base quantised by {for_codes}, and this one is not"
        found = evidence(adapter, model, rounded=self.gguf is not None)
        if found.other:
            return f"{adapter.name} was made for {made_for}, in which {some(found.other, 1)} is other than here"
        if found.exact:
            return None
        if not found.equal:
            return (
                f"{adapter.name} was made for {section.get('name')} ({made_for}), and of what it changes nothing was "
                f"left unquantised by which to tell; say which checkpoint this is the quantised form of "
                f"(quantised_from=)"
            )
        same = f"{len(found.equal)} tensors that are not quantised here are that base's"
        if for_codes:
            warn(
                f"{adapter.name} was made for the numbers that {for_codes} made of {section.get('name')}, and those of "
                f"{self.path} are others: what it repairs is not what is wrong here ({same})",
                QuantisedBase,
            )
        else:
            warn(
                f"{self.path} is taken for a quantised form of {section.get('name')}, which {adapter.name} was made "
                f"for: {same}.  What quantisation changed stays changed; dts compress --base-is quantised makes "
                f"adapters that repair it",
                QuantisedBase,
            )
        return None

    def _not_of_original(self, adapter: Adapter, model: nn.Module, made_for: str) -> str | None:
        """Whether the checkpoint that the user names is the adapter's base, and this a quantised form of it."""
        if self.original_fingerprint != made_for:
            return f"{adapter.name} was made for {made_for}, and {self.original} is {self.original_fingerprint}"
        compared, wrong = differing(adapter, model, open_checkpoint(self.original))
        if wrong or not compared:
            what = f"{some(wrong, 1)} is far from it" if wrong else "nothing could be compared"
            return f"{adapter.name} was made for {self.original}, and this is no quantised form of that: {what}"
        return None
