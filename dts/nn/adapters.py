"""Adapters as a caller gives them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

from dts.adapter import Adapter

Given = Adapter | str | Path  # an adapter, or its folder


def opened(given: Given) -> Adapter:
    return given if isinstance(given, Adapter) else Adapter.load(given)


def all_opened(adapters: Mapping[str, Given]) -> dict[str, Adapter]:
    """Adapters by their tasks.  Raises ValueError that names every one that cannot be read."""
    if not isinstance(adapters, Mapping):
        raise TypeError(
            f"adapters are given by their tasks, {{name: adapter or its folder}}, not as a {type(adapters).__name__}"
        )
    found: dict[str, Adapter] = {}
    wrong: dict[str, Exception] = {}
    for name, given in adapters.items():
        try:
            found[name] = opened(given)
        except (ValueError, OSError) as error:
            wrong[name] = error
    if len(wrong) == 1 and len(adapters) == 1:
        raise next(iter(wrong.values()))
    if wrong:
        refuse(wrong)
    return found


def refuse(wrong: Mapping[str, Exception]) -> NoReturn:
    """One error for all tasks that cannot be loaded."""
    first = next(iter(wrong.values()))
    raise ValueError("; ".join(f"task {name!r}: {error}" for name, error in wrong.items())) from first
