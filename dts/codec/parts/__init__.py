"""The kinds of parts that a matrix can be stored as, in the order in which a matrix's parts stand on disk.

To add one: a module here with a `PartKind`, the data's class in `dts_kernels` with its products, and a line below.
"""

from typing import Any

from . import components, sample
from .kind import PartKind, with_tensors

KINDS: dict[str, PartKind[Any]] = {}


def register(kind: PartKind[Any]) -> None:
    """Makes a kind known to all that stores, reads, weighs and cuts.  Raises ValueError for one that is there."""
    for other in KINDS.values():
        if kind.name == other.name or kind.key == other.key or kind.data is other.data:
            raise ValueError(f"{kind.name}: the kind {other.name} has this name, key or data already")
    KINDS[kind.name] = kind


def kind_of(data: Any) -> PartKind[Any]:
    """The kind of a part.  Raises TypeError for what is none."""
    for kind in KINDS.values():
        if isinstance(data, kind.data):
            return kind
    raise TypeError(f"{type(data).__name__} is no kind of part; there are {', '.join(KINDS)}")


register(components.KIND)
register(sample.KIND)

__all__ = ["KINDS", "PartKind", "kind_of", "register", "with_tensors"]
