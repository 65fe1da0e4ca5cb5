"""Layers that a module keeps beside its children too, ``self.steps = [conv, norm]``, and calls from there.

PEFT puts its layer in the place of the child, and the list has the base's as before.  A copy of the module with the
list has copies in both: that one is kept whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from dts.sites.site import walked


def owners(model: nn.Module) -> dict[str, str]:
    """Modules that are kept beside the tree of modules -> the smallest one around them and all that keeps them; ""
    is the model itself."""
    names: dict[nn.Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        names.setdefault(module, []).append(name)
    around: dict[str, str] = {}
    for name, module in walked(model):
        for kept in _kept(module):
            for inner in names.get(kept, ()):
                around[inner] = _common(around.get(inner, inner), name)
    return {name: _outermost(name, around) for name in around}


def _kept(module: nn.Module) -> Iterator[nn.Module]:
    """The modules in a module's own attributes, and in the lists and dictionaries there."""
    for key, value in vars(module).items():
        if key != "_modules":
            yield from _modules(value)


def _modules(value: Any, depth: int = 2) -> Iterator[nn.Module]:
    if isinstance(value, nn.Module):
        yield value
    elif depth and isinstance(value, list | tuple | set | dict):
        for one in value.values() if isinstance(value, dict) else value:
            yield from _modules(one, depth - 1)


def _common(a: str, b: str) -> str:
    """The module around two, or one of them."""
    shared = []
    for one, other in zip(a.split("."), b.split(".")):
        if one != other:
            break
        shared.append(one)
    return ".".join(shared)


def _outermost(name: str, around: dict[str, str]) -> str:
    """What is around a module, and around that one if it is kept beside the tree itself."""
    while name in around and around[name] != name:
        name = around[name]
    return name
