"""The tasks that a model has, by name."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches

from dts.adapter import Adapter
from dts.checkpoint.errors import first
from dts.nn.routing import Mixture
from dts.nn.selection import Selection, names_in

SHOWN = 50  # names that an error lists


@dataclass
class Loaded:
    """One task of a model: its slot in every layer's bank, and the adapter it came from (None if from entries)."""

    slot: int
    adapter: Adapter | None
    applied: int = 0  # entries that change something here
    skipped: dict[str, str] = field(default_factory=dict)  # other entries, and why


class LoadedTasks(dict[str, Loaded]):
    """name -> `Loaded`."""

    @property
    def names(self) -> dict[int, str]:
        """slot -> name."""
        return {loaded.slot: name for name, loaded in self.items()}

    def free_slot(self) -> int:
        """The first one that no task has."""
        used = {loaded.slot for loaded in self.values()}
        return next(i for i in range(len(used) + 1) if i not in used)

    def check(self, names: Iterable[str]) -> None:
        """Raises ValueError that lists the names that are no task."""
        unknown = sorted({name for name in names if name not in self})
        if unknown:
            near = sorted({one for name in unknown for one in get_close_matches(name, self, 3, 0.6)})
            meant = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
            there = f"the loaded tasks are {first(map(repr, self), SHOWN)}" if self else "no task is loaded"
            raise ValueError(f"no task {', '.join(map(repr, unknown))}; {there}{meant}")

    def mixture(self, selection: Selection) -> Mixture:
        """The slots of a selection, each with its weight."""
        if isinstance(selection, str) and selection in self:  # a batch asks it of every row at every token
            return {self[selection].slot: 1.0}
        names = names_in(selection)
        self.check(names)
        weights = selection if isinstance(selection, Mapping) else dict.fromkeys(names, 1.0)
        try:
            mixture = {self[name].slot: float(weights[name]) for name in names}
        except (TypeError, ValueError):
            raise TypeError(f"weights of a mixture are numbers: {selection}") from None
        if not all(map(math.isfinite, mixture.values())):
            raise ValueError(f"weights of a mixture must be finite numbers: {selection}")
        return mixture
