"""What a caller selects for rows of a batch: a task, a mixture of tasks, or the base."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final


class _Base:
    """The base as a task, said in so many words: ``tasks=dts.BASE``.  There is one, also after a copy or a pickle."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "dts.BASE"

    def __reduce__(self) -> str:
        return "BASE"


BASE: Final = _Base()
AUTO = "auto"  # tasks="auto": chosen for each row from the inputs

Selection = str | Mapping[str, float] | _Base | None  # a task's name, a mixture {name: weight}, BASE or None: the base
Selections = Selection | Sequence[Selection]  # one for all rows, or a list with one a row


def names_in(selection: Selection) -> list[str]:
    """The tasks that a selection names; raises TypeError for what is none."""
    if selection is None or isinstance(selection, _Base):
        return []
    if isinstance(selection, str):
        return [selection]
    if not isinstance(selection, Mapping):
        several = "; one a row is a list of these" if isinstance(selection, Iterable) else ""
        raise TypeError(f"a task is a name, a mixture {{name: weight}}, dts.BASE or None, not {selection!r}{several}")
    if not all(isinstance(name, str) for name in selection):
        raise TypeError(f"a mixture is {{name: weight}}, its names are strings: {selection!r}")
    return list(selection)


def one_a_row(selections: Selections) -> list[Selection] | None:
    """The selections as a list, None if there is one for all rows."""
    if isinstance(selections, Sequence) and not isinstance(selections, str | bytes):
        return list(selections)
    if getattr(selections, "ndim", None) == 1 and hasattr(selections, "tolist"):  # numpy's and pandas' columns
        return list(selections.tolist())  # type: ignore[union-attr]
    return None
