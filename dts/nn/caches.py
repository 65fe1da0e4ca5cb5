"""Caches of keys and values: each belongs to the tasks of the calls that filled it."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch.utils._pytree import tree_leaves

from dts.nn.routing import Mixture

_NAME = "_dts_tasks"  # on a cache: whose it is


def is_cache(value: Any) -> bool:
    """Whether it is an object that a forward writes its past into; tuples of tensors are not."""
    return hasattr(value, "get_seq_length") or "cache" in type(value).__name__.lower()


def refuse_caches(args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Raises ValueError for a cache in a call whose tasks run one after the other: each would write into it."""
    leaves = tree_leaves((args, dict(kwargs)))
    if any(hasattr(leaf, "dts_rows") for leaf in leaves):  # which is taken apart
        return
    given = [type(leaf).__name__ for leaf in leaves if is_cache(leaf)]
    if given or kwargs.get("use_cache") is True:
        what = f"its {given[0]} is of all rows" if given else "it could give no cache (use_cache) of all rows"
        raise ValueError(
            f"this model runs batches of several tasks once a task (see status()), so {what}: give rows of one task at "
            "a time, or decode with generate(), which takes tasks="
        )


def follow(
    args: Sequence[Any], kwargs: Mapping[str, Any], answer: Any, mixtures: list[Mixture], names: Mapping[int, str]
) -> None:
    """Warns where a call was given a cache that others' tasks filled, and notes whose it is.

    names: of the slots.
    """
    made = answer.values() if isinstance(answer, dict) else answer if isinstance(answer, tuple) else ()
    given = _caches([*args, *kwargs.values()])
    if not (touched := given + _caches(made)):  # most calls
        return
    own = {tuple(sorted((names[slot], weight) for slot, weight in mixture.items())) for mixture in mixtures}
    for cache in given:
        before: set[Any] | None = getattr(cache, _NAME, None)
        if before is not None and not own <= before:
            warnings.warn(
                f"a cache that {_words(before)} filled is used for {_words(own - before)}: what is in it stays theirs, "
                "and so the answer is no task's own; give each task a cache of its own",
                stacklevel=5,
            )
    for cache in touched:
        try:
            setattr(cache, _NAME, own | getattr(cache, _NAME, set()))
        except AttributeError:  # an object of a fixed shape
            pass


def _caches(values: Iterable[Any]) -> list[Any]:
    """But for those whose rows come and go."""
    return [value for value in values if hasattr(value, "get_seq_length") and not hasattr(value, "dts_rows")]


def _words(tasks: Iterable[tuple[tuple[str, float], ...]]) -> str:
    named = [" and ".join(name if weight == 1 else f"{weight:g} {name}" for name, weight in task) for task in tasks]
    return ", ".join(sorted(name or "the base" for name in named))
