"""What hooks of users keep of what they see, put back after forwards that nobody asked for.

It lies in no module: in a variable or container that a function closes over, in a global, in the object whose method it
is.  Who reads it after a call means that call.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from types import FunctionType, MethodType
from typing import Any

from torch import Tensor, nn

from dts.nn.layers.closures import MOST, Place, closed_over
from dts.nn.layers.kept_values import fields_of, is_container, snapshot, unchanged, written
from dts.nn.layers.module_state import is_helper


@contextmanager
def hooks_as_they_were(modules: Iterable[nn.Module]) -> Iterator[None]:
    seen: set[int] = set()
    hooks = [h for m in modules for h in (*m._forward_pre_hooks.values(), *m._forward_hooks.values())]
    places = [place for hook in hooks for place in _places(hook, seen)]
    had = [(value, snapshot(value), put) for value, put in places]
    try:
        yield
    finally:
        for value, before, put in had:
            if is_container(value) and not unchanged(value, before):
                written(value, before)
            put(value)


def _places(held: Any, seen: set[int]) -> Iterator[Place]:
    """Where a hook, or what it holds, may put something."""
    if id(held) in seen or len(seen) > MOST:
        return
    seen.add(id(held))
    for value, put in _own(held):
        if isinstance(value, FunctionType | MethodType | partial) or is_helper(value):
            yield from _places(value, seen)
        else:
            yield value, put


def _own(held: Any) -> Iterator[Place]:
    if isinstance(held, FunctionType):
        yield from closed_over(held)
        names = held.__globals__.keys() & set(held.__code__.co_names)
        found = ((name, held.__globals__[name]) for name in names)
        kept = (item for item in found if is_container(item[1]) or isinstance(item[1], Tensor | int | float | None))
        yield from ((value, partial(held.__globals__.__setitem__, name)) for name, value in kept)
    elif isinstance(held, partial):
        yield from ((value, _nowhere) for value in (held.func, *held.args, *held.keywords.values()))
    else:
        owner = held.__self__ if isinstance(held, MethodType) else held
        if is_helper(owner) or isinstance(owner, nn.Module):
            own = vars(owner)
            yield from ((value, partial(own.__setitem__, name)) for name, value in fields_of(own).items())


def _nowhere(value: Any) -> None:
    """An argument of a partial function stays the same object."""
