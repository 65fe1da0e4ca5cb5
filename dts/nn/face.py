"""How a `DTSModel` looks to code that asks a model for its class and for its forward's arguments.

transformers' pipelines, Trainer and others look at ``model.__class__`` (is it one for this task? which arguments are
labels?), ask ``isinstance(model, PreTrainedModel)``, and read the signature of ``model.forward`` (which columns of a
data set does it take?).  All of them get the base's answers; ``type(model)`` stays `DTSModel`.
"""

from __future__ import annotations

import functools
import inspect
import weakref
from collections.abc import Callable
from types import FunctionType, MethodType
from typing import Any

from torch import nn

from dts.nn.compiled import given_back, put_aside, uncompiled
from dts.nn.layers import base_class
from dts.nn.library import library
from dts.nn.routing import tracing
from dts.nn.views import plain


def class_of(wrapper: nn.Module) -> type:
    """The base's class where a library's code asks for that, else the wrapper's own."""
    model = wrapper.__dict__.get("_modules", {}).get("model")
    if model is None or not library().knows(plain(model)):
        return type(wrapper)
    return base_class(plain(model))


class Forward:
    """A method with the signature of the base's forward, and ``tasks``."""

    def __init__(self, function: Callable[..., Any]):
        self.function = function
        self._made: weakref.WeakKeyDictionary[type, Any] = weakref.WeakKeyDictionary()
        self.__doc__ = function.__doc__

    @uncompiled
    def __get__(self, wrapper: nn.Module | None, owner: type | None = None) -> Any:
        if wrapper is None:
            return self.function
        if tracing():  # programs call, and do not ask
            return functools.partial(self.function, wrapper)
        compiler = put_aside()  # what is asked here is no part of a program either
        try:
            return MethodType(self._of(wrapper), wrapper)
        finally:
            given_back(compiler)

    def _of(self, wrapper: nn.Module) -> Any:
        model = wrapper.__dict__["_modules"].get("model")
        if model is None:
            return self.function
        kind = type(plain(model))
        made = self._made.get(kind)
        if made is None:
            made = self._made[kind] = _signed(self.function, kind.forward)
        return made


def _signed(function: Any, base: Any) -> Any:
    """The function with the parameters of another one, and its own that are named."""
    try:
        theirs = inspect.signature(base)
    except (TypeError, ValueError):
        return function
    names = list(theirs.parameters.values())
    own = [
        parameter
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY and name not in theirs.parameters
    ]
    place = next((i for i, parameter in enumerate(names) if parameter.kind is parameter.VAR_KEYWORD), len(names))
    names[place:place] = own
    made: Any = FunctionType(
        function.__code__, function.__globals__, function.__name__, function.__defaults__, function.__closure__
    )
    made.__kwdefaults__, made.__doc__, made.__qualname__ = function.__kwdefaults__, base.__doc__, function.__qualname__
    made.__signature__ = theirs.replace(parameters=names)
    return made
