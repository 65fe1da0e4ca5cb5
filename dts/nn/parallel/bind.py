"""Forwards that a library put in front of a module's own, on the module itself.

transformers' tensor parallelism wraps the forward that a module has when it is loaded: the wrapper brings input and
output to their places and calls that.  The module becomes another class when a task changes it, whose forward must be
called instead; so the wrapper is told to look for it each time.
"""

from __future__ import annotations

from functools import partial
from types import FunctionType, MethodType
from typing import Any

from torch import nn

INNER = "original_forward"  # what transformers calls it


def bind(module: nn.Module) -> None:
    """Let a wrapper of transformers on this module call the forward of the class that the module then has."""
    wrapper = module.__dict__.get("forward")
    if not isinstance(wrapper, FunctionType) or not wrapper.__module__.startswith("transformers."):
        return
    cells = dict(zip(wrapper.__code__.co_freevars, wrapper.__closure__ or ()))
    if INNER in cells and _own(cells[INNER].cell_contents, module):
        cells[INNER].cell_contents = partial(_forward, module)


def _own(function: Any, module: nn.Module) -> bool:
    """Whether it is the forward of the module's class."""
    return isinstance(function, MethodType) and function.__self__ is module and function.__func__.__name__ == "forward"


def _forward(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    run: Any = type(module).forward
    return run(module, *args, **kwargs)
