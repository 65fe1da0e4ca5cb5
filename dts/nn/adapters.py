"""Adapters as a caller gives them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

from dts.adapter import Adapter, Entry

Given = Adapter | str | Path  # an adapter, or its folder


def opened(given: Given) -> Adapter:
    if not isinstance(given, Adapter | str | Path):
        raise TypeError(f"an adapter is given as a dts.Adapter, or by its folder, not as a {type(given).__name__}")
    return given if isinstance(given, Adapter) else Adapter.load(given)


def checked(entries: Mapping[str, Entry]) -> Mapping[str, Entry]:
    """Entries by name.  Raises TypeError for what is none: weights, or differences of them, are no adapter yet."""
    for name, entry in entries.items():
        if not isinstance(entry, Entry):
            raise TypeError(
                f"{name!r} is a {type(entry).__name__}, and no entry of an adapter: dts.compress(base, fine-tune, ...) "
                "makes an adapter of weights"
            )
    return entries


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
    """One error for all tasks that cannot be loaded, caused by the first one's."""
    first = next(iter(wrong.values()))
    raise ValueError("; ".join(f"task {name!r}: {error}" for name, error in wrong.items())) from first
