"""Which kind of DTS layer takes over which module: a line in the kind's own file says so.

    @register(nn.Conv2d)                            modules of exactly these classes
    @register(when=lambda module: ...)              modules of which this holds
    class DTSConv2d(Layer, nn.Conv2d): ...

The kind registered last is asked first: what is made outside of this package may take over what is known here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

from torch import nn

from dts.nn.layers.layer import Layer, base_class

K = TypeVar("K", bound=type[Layer])

_kinds: list[tuple[Callable[[nn.Module], bool], type[Layer]]] = []


def register(*classes: type[nn.Module], when: Callable[[nn.Module], bool] | None = None) -> Callable[[K], K]:
    """Decorator of a `Layer` that takes over modules of these classes, their subclasses not, or those of ``when``.

    A subclass may compute something else in its forward; ``when`` can look.  It is asked about plain modules and about
    those that are DTS layers already: `base_class` is what they were.
    """

    def takes(module: nn.Module) -> bool:
        return base_class(module) in classes or when is not None and when(module)

    def registered(kind: K) -> K:
        _kinds.insert(0, (takes, kind))
        return kind

    return registered


def known_kinds() -> int:
    """How many there are: another one may take over what another took before."""
    return len(_kinds)


def kinds_of(module: nn.Module) -> Iterator[type[Layer]]:
    """The kinds that take over a module, the best first; none for a module that no kind knows."""
    return (kind for takes, kind in _kinds if takes(module))


def kind_of(module: nn.Module) -> type[Layer]:
    """The best of `kinds_of`, else `Layer` itself, which says what holds of any module."""
    return next(kinds_of(module), Layer)


def read_by(module: nn.Module) -> tuple[str, ...]:
    """``kind_of(module).dts_reads``; nearly no kind has some, and all modules of a model are asked."""
    if not any(takes(module) for takes, kind in _kinds if kind.dts_reads):
        return ()
    return kind_of(module).dts_reads
