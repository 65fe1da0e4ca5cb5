"""Forwards that something put in front of a module's own, on the module itself.

Hooks of accelerate and diffusers, transformers' tensor parallelism and users' own wrappers take the forward that a
module has, put theirs on the module, and call what they took.  The module becomes another class when a task changes it,
whose forward must be called instead: that of its class before would read its parameters as anybody else's code does,
dense and for all rows at once.  So what was taken is told to look for the module's forward each time.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from types import FunctionType, MethodType, ModuleType
from typing import Any

from torch import Tensor, nn

from dts.nn.layers.closures import MOST, Place, closed_over

_LAYERS = __name__.rpartition(".")[0]
_OTHERS = (nn.Module, Tensor, type, ModuleType, MethodType)


def bind(module: nn.Module, base: type[nn.Module]) -> None:
    """Let wrappers on this module call the forward of the class that the module then has.

    base: the class that it has without tasks.
    """
    own = module.__dict__
    late = MethodType(forward, module)
    for name, value in list(own.items()):
        if _taken(value, module, base):
            own[name] = late
    if "forward" in own:
        _bind_in(own["forward"], module, base, late, set())


def forward(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    run: Any = type(module).forward
    return run(module, *args, **kwargs)


def _taken(value: Any, module: nn.Module, base: type[nn.Module]) -> bool:
    """Whether it is the forward of a class that the module has or had, and not one that somebody gave it."""
    if not isinstance(value, MethodType) or value.__self__ is not module:
        return False
    if not isinstance(value.__func__, FunctionType) or value.__func__.__name__ != "forward":
        return False  # any object that can be called may be bound to a module, as torchao binds partial functions
    return value.__func__ is base.forward or value.__func__.__module__.startswith(_LAYERS)


def _bind_in(wrapper: Any, module: nn.Module, base: type[nn.Module], late: MethodType, seen: set[int]) -> None:
    if id(wrapper) in seen or len(seen) > MOST:
        return
    seen.add(id(wrapper))
    for value, put in _held(wrapper):
        if _taken(value, module, base):
            put(late)
        else:
            _bind_in(value, module, base, late, seen)


def _held(wrapper: Any) -> Iterator[Place]:
    """What a function, a partial one, or an object that holds some has to call."""
    if isinstance(wrapper, FunctionType):
        yield from closed_over(wrapper)
        for i, value in enumerate(wrapper.__defaults__ or ()):
            yield value, partial(_default, wrapper, i)
    elif isinstance(wrapper, partial):
        for i, value in enumerate((wrapper.func, *wrapper.args)):
            yield value, partial(_part, wrapper, i)
    elif not isinstance(wrapper, _OTHERS) and isinstance(getattr(wrapper, "__dict__", None), dict):
        for name, value in list(vars(wrapper).items()):
            if isinstance(value, FunctionType | MethodType | partial):
                yield value, partial(setattr, wrapper, name)


def _default(function: FunctionType, place: int, value: Any) -> None:
    defaults = list(function.__defaults__ or ())
    defaults[place] = value
    function.__defaults__ = tuple(defaults)


def _part(made: partial[Any], place: int, value: Any) -> None:
    """Of a partial function: its function, and then its arguments."""
    again: Any = made
    _, _, (_, _, keywords, fields) = again.__reduce__()
    parts = [made.func, *made.args]
    parts[place] = value
    again.__setstate__((parts[0], tuple(parts[1:]), keywords, fields))
