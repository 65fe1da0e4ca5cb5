"""Which path computes a product: a pure function of device, shapes, dtype and rows, and a count of what ran."""

from collections import Counter
from dataclasses import dataclass

ran: Counter = Counter()  # (op, path) -> calls, shown by `dts doctor` and asserted by tests


@dataclass(frozen=True)
class Problem:
    """Everything the choice may depend on."""

    op: str  # "delta_linear" | "linear" | "reconstruct"
    device: str  # "cpu" | "cuda"
    dtype: str  # "float16" | "bfloat16" | "float32" | "float64"
    rows: int
    in_features: int
    out_features: int
    max_rank: int
    entries: int = 1
    places: int = 1
    tasks: int = 1
    layout: str = "disk"
    transposed: bool = False


def choose(problem: Problem) -> str:
    """Name of the path for a problem."""
    return "reference"
