"""What a caller selects for rows of a batch: a task, a mixture of tasks, or the base."""

from __future__ import annotations

import math
from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Any, Final

from dts.values import LARGEST


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


def is_weight(value: Any) -> bool:
    """Could a task be mixed in by this?"""
    try:
        weight_of(value)
    except (TypeError, ValueError):
        return False
    return True


def weight_of(value: Any) -> float:
    """A weight of a mixture; raises TypeError for what is no number, ValueError for one too large for float32."""
    if isinstance(value, str | bytes | bool):
        raise TypeError
    try:
        weight = float(value)
    except OverflowError:
        weight = math.inf
    if not abs(weight) <= LARGEST:
        raise ValueError
    return weight


def refuse_task(task: Any, names: Container[str]) -> None:
    """Raises TypeError where a keyword ``task`` that models swallow without a word names loaded tasks."""
    given = [task] if isinstance(task, str) else task if isinstance(task, list | tuple | Mapping) else []
    if given and all(isinstance(name, str) and name in names for name in given):
        raise TypeError(f"task={task!r} names what is loaded here: the keyword is tasks=")


def one_a_row(selections: Selections) -> list[Selection] | None:
    """The selections as a list, None if there is one for all rows."""
    if isinstance(selections, Sequence) and not isinstance(selections, str | bytes):
        return list(selections)
    if getattr(selections, "ndim", None) == 1 and hasattr(selections, "tolist"):  # numpy's and pandas' columns
        return list(selections.tolist())  # type: ignore[union-attr]
    return None
