"""Which CPU path a product takes.

    native         C, codes expanded in registers or tiles, x and t in two 8-bit digits
    native_exact   C, the same in float32
    unpack         C writes the factors out in the product's dtype, tiles at a time, for the library's products
    table          the same with PyTorch's index_select; needs no compiler

Crossovers are those of `python -m benchmarks.kernels.cpu --crossover` on a CPU with AVX-512 and its bf16 products
(4096 x 1024, r = .3, up to 512 rows).  Of AVX2, on the same CPU in one thread, C took 0.43 to 0.63 of the other's time
in float32 (32 to 1024 rows, also 384 x 384), less in bf16.  The Arm ones are not measured.
"""

from ..dispatch import Problem
from . import native

DTYPES = ("float32", "bfloat16", "float16")
UNPACK_ROWS: dict[str, int | None] = {
    "avx512vbmi": None,
    "avx512": None,
    "avx2": None,
    "neondot": None,
    "neon": 64,
    "portable": 16,
}
UNPACK_ROWS_BFLOAT16: dict[str, int | None] = {
    "avx512vbmi": 1024,
    "avx512": 1024,
    "avx2": None,
    "neondot": 64,
    "neon": 32,
    "portable": 16,
}
UNPACK_ROWS_EXACT = 8  # the float32 loops decode for every row


def choose(p: Problem) -> str | None:
    """Name of the path of a product with disk bytes on the CPU, None for others."""
    if p.layout != "disk" or p.device not in ("cpu", "interpreter"):
        return None
    variant = native.variant() if p.variant is None else p.variant
    compiled = p.dtype in DTYPES and bool(variant)
    if p.op in ("add_samples", "add_sampled_rows", "add_dense_samples", "add_embedding"):
        return "native" if compiled and p.rows else None
    if p.op not in ("delta_linear", "linear", "reconstruct"):
        return None
    if not compiled or p.places > native.MOST_PLACES:
        return "table"
    packed = "native_exact" if p.exact else "native"
    if p.op == "reconstruct":
        return packed
    crossover = (UNPACK_ROWS_BFLOAT16 if p.dtype == "bfloat16" else UNPACK_ROWS)[variant]
    crossover = UNPACK_ROWS_EXACT if p.exact else crossover
    return "unpack" if p.entries == 1 and crossover is not None and p.rows >= crossover else packed


WHOLE_ROWS, WHOLE_SIZE = 256, 1 << 23


def whole_from(m: int, n: int, sampled: bool) -> float:
    """Rows of one task from which its delta is better added to a copy of the base's [m, n], for the library's product,
    than multiplied by itself; sampled: there are samples in it.

    A product of components takes rows (m + n) operations a rank and the copy m n, a third slower ones; a sample's copy
    costs what some 60 rows do.  No matrices so large that a copy would weigh beside the model.
    """
    if m * n > WHOLE_SIZE:
        return float("inf")
    return WHOLE_ROWS if sampled else max(WHOLE_ROWS, 1.5 * m * n / (m + n))
