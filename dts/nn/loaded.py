"""The tasks that a model has, by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any

from dts.adapter import Adapter
from dts.adapter.adapter import load_same
from dts.checkpoint.errors import first
from dts.nn.routing import Mixture
from dts.nn.selection import Selection, names_in, weight_of
from dts.values import LARGEST, shown

SHOWN = 50  # names that an error lists


@dataclass
class Loaded:
    """One task of a model: its slot in every layer's bank, and the adapter it came from (None if from entries)."""

    slot: int
    kept: Adapter | None
    applied: int = 0  # entries that change something here
    skipped: dict[str, str] = field(default_factory=dict)  # other entries, and why
    model_config: dict[str, Any] = field(default_factory=dict)  # the fine-tune's, where it had one
    again: Callable[[], Adapter] | None = None  # reads an adapter that is not kept

    @property
    def adapter(self) -> Adapter | None:
        """Read again where it is not kept.  Raises ValueError where it cannot be, or is another one by now."""
        return self.kept if self.again is None else self.again()

    def forget(self, again: Callable[[], Adapter] | None = None) -> None:
        """Let go of an adapter that can be read again: its objects take more memory than the task's packed bits.

        again: reads it, and raises ValueError where it is another one;  None: from its folder, by its digest.
        """
        kept = self.kept
        if again is None and kept is not None and kept.folder is not None:
            again = partial(_read_again, kept.folder, kept.digest)
        if again is not None and kept is not None:
            self.kept, self.again = None, again


def _read_again(folder: Path, digest: str) -> Adapter:
    try:
        return load_same(folder, digest, "load the task again")
    except (OSError, ValueError) as error:  # whose words have the whole path, and a server's clients read these
        if isinstance(error, OSError) and not isinstance(error, FileNotFoundError | NotADirectoryError):
            raise OSError(error.errno, f"{folder.name} cannot be read again now: {error.strerror}") from error
        raise ValueError(f"{folder.name} is not there any more as it was loaded: load it again") from error


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
            return {self[name].slot: weight_of(weights[name]) for name in names}
        except TypeError:
            raise TypeError(f"weights of a mixture are numbers: {selection}") from None
        except ValueError:
            what = f"finite numbers, {LARGEST:g} at most"
            raise ValueError(f"weights of a mixture must be {what}: {shown(selection)}") from None
