"""Which CPU path a product takes.

    native         C, codes expanded in registers or tiles, x and t in two 8-bit digits
    native_exact   C, the same in float32
    unpack         C writes the factors out in the product's dtype, tiles at a time, for the library's products
    table          the same with PyTorch's index_select; needs no compiler

Crossovers are those of `python -m benchmarks.kernels.cpu --crossover` on a CPU with AVX-512 and its bf16 products
(4096 x 1024, r = .3, up to 512 rows); the Arm ones follow AVX2's and are not measured.
"""

from . import native

UNPACK_ROWS = {"avx512vbmi": None, "avx512": None, "avx2": 256, "neondot": None, "neon": 64, "portable": 16}
UNPACK_ROWS_BFLOAT16 = {"avx512vbmi": 1024, "avx512": 1024, "avx2": 32, "neondot": 64, "neon": 32, "portable": 16}
UNPACK_ROWS_EXACT = 8  # the float32 loops decode for every row


def choose(
    op: str, dtype: str, rows: int, entries: int = 1, places: int = 1, exact: bool = False, variant: str | None = None
) -> str:
    """Name of the path of a product with disk bytes.

    variant: the instruction set of `native.variants`, "" for a machine without the library; None asks this machine.
    """
    variant = native.variant() if variant is None else variant
    if op == "delta_embedding":
        return "reference"
    if dtype not in ("float32", "bfloat16", "float16") or not variant or places > native.MOST_PLACES:
        return "table"
    if op == "reconstruct":
        return "native_exact" if exact else "native"
    crossover = UNPACK_ROWS_BFLOAT16 if dtype == "bfloat16" else UNPACK_ROWS
    crossover = UNPACK_ROWS_EXACT if exact else crossover[variant]
    if entries == 1 and crossover is not None and rows >= crossover:
        return "unpack"
    return "native_exact" if exact else "native"
