"""Factors as they are stored: tensors by suffix, and fragments of a row of ``dts_config.json``; docs/format.md.

Which tensors and fragments there are is the business of the kinds of parts (`dts.codec.parts`); beside them stand

    .rows, .columns    which rows and columns the factors cover, as `index_to_disk` stores them
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from dts.values import LARGEST

from .errors import Undecodable
from .factors import Factors
from .index import checked_index, index_to_disk
from .parts import KINDS, PartKind, kind_of
from .parts.kind import Load

SIDES = ("rows", "columns")


def tensors_of(factors: Factors) -> dict[str, Tensor]:
    """Suffix -> tensor as stored.  Raises ValueError for kinds that take one another's suffixes."""
    tensors: dict[str, Tensor] = {}
    for kind in KINDS.values():
        for place, data in enumerate(of_kind(factors, kind)):
            own = kind.tensors(place, data)
            if taken := own.keys() & (tensors.keys() | set(SIDES)):
                raise ValueError(f"{kind.name}: other tensors are called {', '.join(sorted(taken))} already")
            tensors |= own
    for side, kept, size in zip(SIDES, (factors.rows, factors.columns), factors.shape):
        if kept is not None:
            tensors[side] = index_to_disk(kept, size)
    return tensors


def fragments_of(factors: Factors) -> dict[str, list]:
    """Key of the row -> fragment, of all kinds that the factors have."""
    held = {kind.key: (kind, of_kind(factors, kind)) for kind in KINDS.values()}
    return {key: kind.fragment(parts) for key, (kind, parts) in held.items() if parts}


def of_kind(factors: Factors, kind: PartKind[Any]) -> list[Any]:
    """The parts of one kind, in order."""
    return [data for data in factors.stored if kind_of(data) is kind]


def factors_from(
    name: str,
    shape: tuple[int, int],
    load: Load,
    fragments: Mapping[str, Any],
    norm: float,
    squared_error: float | None,
) -> Factors:
    """The inverse of `tensors_of` and `fragments_of`.

    name: of the tensor, for messages;  shape: (m, n) of it;  load: gives the tensor of a suffix, None if there is none;
    fragments: by key, each as its kind's `PartKind.fits` lets it pass, None or absent where there is none.
    Raises Undecodable for tensors that are missing, do not fit each other, or hold what is no number.
    """
    rows, columns = [checked_index(f"{name}.{side}", load(side), size) for side, size in zip(SIDES, shape)]
    compact = shape
    if rows is not None or columns is not None:
        compact = Factors((), shape, rows, columns, norm, squared_error).compact_shape
    kinds = [kind for kind in KINDS.values() if fragments.get(kind.key) is not None]
    if not any([kind.alone for kind in kinds]):
        raise Undecodable(f"{name}: it has neither parts nor added rows")
    parts, largest = list[Any](), 0.0
    for kind in kinds:
        own = kind.decode(name, fragments[kind.key], compact, load)
        largest += sum(map(kind.largest, own))
        parts += own
    factors = Factors(tuple(parts), shape, rows, columns, norm, squared_error)
    if not largest <= LARGEST:
        raise Undecodable(f"{name}: the numbers of its parts (sigma, levels, scale, ...) are none, or too large")
    return factors
