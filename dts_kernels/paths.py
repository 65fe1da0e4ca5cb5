"""The implementations of every op, by name: `dispatch.choose` says which name a product takes.

What they are called with has been checked by the op, and the routing is contiguous and on the device of x.  x, y: any
number of leading axes, y None for zeros; what is returned is new memory in x's dtype.

    delta_linear       (x, y, FactorOperands, transposed)     linear             (x, weight, bias, FactorOperands)
    delta_embedding    (ids, FactorOperands, in_features, dtype)
    add_embedding      (ids, y, EmbeddingParts, Routing)      reconstruct        (DenseOperands, dtype)
    add_samples        (x, y, SampleOperands, transposed)     add_sampled_rows   (ids, y, SampleOperands, rows)
    add_dense_samples  (base, StoredSamples, gamma)

A backend is a module of `backends` that registers its implementations here and a function of what it would take with
`dispatch.chooser`.
"""

from collections.abc import Callable
from typing import TypeVar

from torch import Tensor

Path = TypeVar("Path", bound=Callable[..., Tensor])

PATHS: dict[str, dict[str, Callable[..., Tensor]]] = {}  # op -> name of the path -> implementation
TAKES_ADDS: set[Callable[..., Tensor]] = set()  # those that add the tasks' addends in the same pass
Finish = Callable[[Tensor], Tensor]  # y -> y + the product that was started
STARTS: dict[Callable[..., Tensor], Callable[..., Finish | None]] = {}  # of add_samples: (x, operands, out_features)


def register(
    op: str, path: str, adds: bool = False, starts: Callable[..., Finish | None] | None = None
) -> Callable[[Path], Path]:
    """Decorator: the function is that path of the op.  adds: it takes ``adds=`` (float32 [slots, out_features]) too.
    starts: launches all of it that needs no y, beside what follows, or returns None where it would not be faster.

    Raises ValueError where the name is taken.
    """

    def keep(function: Path) -> Path:
        if path in PATHS.setdefault(op, {}):
            raise ValueError(f"{op} has a path {path!r} already")
        PATHS[op][path] = function
        if adds:
            TAKES_ADDS.add(function)
        if starts is not None:
            STARTS[function] = starts
        return function

    return keep
