"""The layer that a module becomes."""

from __future__ import annotations

from torch import nn

from dts.nn.deltas import Piece
from dts.nn.layers.layer import Layer
from dts.nn.layers.norm import DTSNorm
from dts.nn.layers.owner import Owner
from dts.nn.layers.registry import kinds_of

FALLBACKS: tuple[type[Layer], ...] = (DTSNorm, Owner)  # for what no kind takes over: vectors only, anything


def layer_class(module: nn.Module, pieces: dict[str, list[Piece]]) -> type[Layer]:
    """The DTS layer for a module and what changes of it: rows of several tasks together where that is possible."""
    return next(kind for kind in (*kinds_of(module), *FALLBACKS) if kind.supports(module, pieces))
