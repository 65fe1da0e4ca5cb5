"""The layer that a module becomes."""

from __future__ import annotations

from itertools import chain

from torch import nn

from dts.nn.deltas import Piece
from dts.nn.layers.layer import Layer
from dts.nn.layers.norm import DTSNorm
from dts.nn.layers.owner import Owner
from dts.nn.layers.patched import Patched, patched
from dts.nn.layers.registry import kinds_of

FALLBACKS: tuple[type[Layer], ...] = (DTSNorm, Owner)  # for what no kind takes over: vectors only, anything


def layer_class(
    module: nn.Module, pieces: dict[str, list[Piece]], known: dict[tuple, type[Layer]] | None = None
) -> type[Layer]:
    """The DTS layer for a module and what changes of it: rows of several tasks together where that is possible.

    What runs once a task already goes on as it is.  known: answers of before, as long as the model is the same: the
    next task changes what the last one did.
    """
    if known is None:
        return _chosen(module, pieces)
    asked = id(module), type(module), *[(name, p.kind, p.expert) for name, parts in pieces.items() for p in parts]
    if asked not in known:
        kind = _chosen(module, pieces)
        if any(p.kind == "exact" for parts in pieces.values() for p in parts) or issubclass(kind, Owner | Patched):
            return kind
        known[asked] = kind
    return known[asked]


def _chosen(module: nn.Module, pieces: dict[str, list[Piece]]) -> type[Layer]:
    if isinstance(module, Owner):
        return Owner
    others = {name: [piece for piece in parts if piece.kind != "exact"] for name, parts in pieces.items()}
    kind = next(kind for kind in chain(kinds_of(module), FALLBACKS) if kind.supports(module, others))
    exact = (
        any(len(others[name]) < len(pieces[name]) for name in pieces)
        or isinstance(module, Layer)
        and any(p.exact for p in module.dts.parameters.values())
    )
    if not exact or issubclass(kind, Owner):
        return kind
    return patched(kind) if kind.dts_one_input else Owner
