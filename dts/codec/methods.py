"""All methods by name, and what is predicted of them.

To add one: a module with a `Method` (see `dts.codec.method`), and a line below.
"""

from torch import Tensor

from . import auto, four_group, residual, sketch
from .method import Choice, Method


class Exact(Choice):
    """Not a way of making parts: what changed, bit for bit (`dts.codec.exact`)."""

    name = "exact"
    about = "every bit that changed, however many bytes that takes: for models that were tuned lightly in 16 bits"
    rounds_vectors = False

    def for_distance(self, moved: float) -> Method:
        raise ValueError('method "exact" makes no parts of matrices')


LOSSLESS = Exact()
METHODS: dict[str, Method] = {}  # which make parts
CHOICES: dict[str, Choice] = {auto.CHOICE.name: auto.CHOICE}  # what can be asked for: a rule, those, and exact


def is_stored(name: str) -> bool:
    """Can an adapter be of this method?"""
    return name in METHODS or name == LOSSLESS.name


def register(method: Method) -> None:
    """Makes a method known.  Raises ValueError for a name that is taken."""
    if method.name in CHOICES:
        raise ValueError(f"there is a method {method.name!r} already")
    METHODS[method.name] = CHOICES[method.name] = method


def method_of(name: str) -> Method:
    """The method of this name; raises ValueError naming those there are."""
    if name not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, not {name!r}")
    return METHODS[name]


def predicted_error(singular_values: Tensor, ranks, method: str = "residual", shape=None) -> Tensor:
    """Predicted squared relative error at each rank, by the formulas of `dts.codec.spectrum`.

    singular_values: [count], all of them, in any order; ranks: ints; shape: (m, n) of the matrix without its zero
    rows and columns, needed for "sketch".  Returns float64 [len(ranks)].
    """
    return method_of(method).predicted_error(singular_values, ranks, shape)


def error_bounds(singular_values: Tensor, ranks, method: str = "residual", shape=None) -> tuple[Tensor, Tensor]:
    """(lower, upper) bounds of the squared relative error at each rank: float64 [len(ranks)] each.

    The lower one holds for every matrix, the upper one for singular vectors whose elements are close to normal; see
    **Bounds** and **Where they fail** in `dts.codec.spectrum`.  Of "sketch" they are those of its components with the
    expected noise of its sample.  Arguments as in `predicted_error`.
    """
    return method_of(method).error_bounds(singular_values, ranks, shape)


for known in (residual, four_group, sketch):
    register(known.METHOD)
CHOICES[LOSSLESS.name] = LOSSLESS
