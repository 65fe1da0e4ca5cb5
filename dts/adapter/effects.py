"""Whether what is written of an adapter differs from the base where the adapter says so."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from dts.adapter.errors import NoEffect
from dts.adapter.whole import is_rounded_copy
from dts.warn import warn

if TYPE_CHECKING:
    from dts.adapter.data import AdapterData
    from dts.adapter.entries import Entry
    from dts.checkpoint import Checkpoint


class Effects:
    """Does what is written differ from the base where the adapter says so?  Fed tensor by tensor while it is."""

    def __init__(self, adapter: AdapterData, base: Checkpoint):
        self.adapter, self.base = adapter, base
        self.changed = self.expected = 0
        self.rounded: list[str] = []
        self.wrong: list[str] = []

    def see(self, name: str, value: Tensor) -> Tensor:
        """Looks at the reconstructed tensor, which it returns."""
        entry = self.adapter.entries.get(name)
        if entry is None or entry.kind == "tied" or entry.base_name is None:
            return value
        return self.compare(entry, self.base.load(entry.base_name), value)

    def compare(self, entry: Entry, base: Tensor, value: Tensor) -> Tensor:
        """The same, given the base's tensor, or the part of a larger one that it is in a model in memory."""
        if entry.kind == "exact" or entry.added_rows is not None or not is_rounded_copy(value, base):
            self.expected, self.changed = self.expected + 1, self.changed + 1
        elif entry.kind != "value" and entry.delta().any():
            self.expected += 1
            wide = base.double() + entry.delta().double()
            (self.rounded if _same(wide.to(value.dtype), value) else self.wrong).append(entry.name)
        return value

    def check(self) -> None:
        """Raises NoEffect if a tensor that the adapter changes is the base's, or all of them are."""
        entries = self.adapter.entries.values()
        if self.wrong or self.expected and not self.changed and not any(e.task_only for e in entries):
            names = self.wrong or self.rounded
            raise NoEffect(
                f"{len(names)} of the {self.expected} tensors that the adapter {self.adapter.name!r} "
                f"changes came out equal to the base: {', '.join(names[:20])}.  Nothing was written"
            )
        if self.rounded:
            warn(
                f"the change of {len(self.rounded)} tensors is too small for their dtype and is rounded "
                f"away: {', '.join(self.rounded[:20])}"
            )


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and bool((a == b).all())
