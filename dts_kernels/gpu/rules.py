"""Which GPU path a product takes.

triton       kernels that decode in registers; ``triton_levels``: of a bank in which a task has levels
dequantise   factors written out for the library's products, when many rows share them; ``dequantise_levels``
dense        sampled elements as a dense matrix for the library's products
"""

from .. import dispatch
from ..dispatch import Problem
from ..layout import round_up
from ..planar import RANK_BLOCK

DTYPES = ("float16", "bfloat16", "float32")
DENSE_ROWS = 64  # of one task, from here a dense matrix and a library product; modelled, not measured
DEQUANTISE_ROWS = 256  # of one task in float32, from here as below; modelled, not measured

# Of 16-bit numbers: microseconds, and femtoseconds an element of `work`, that a delta costs beside the base's product.
# Fitted to what was *measured* on an H100 in CUDA graphs (benchmarks/results/nvidia-h100-80gb-hbm3, 1 to 4,096 rows of
# one task): base and delta together are within 12 % of every row.  Other devices were not measured
PACKED_START, PACKED = 10.8, 8.8
DEQUANTISED_START, DEQUANTISED = 23.2, 3.0
BANDWIDTH = 2.4e6  # bytes a microsecond: the second library product reads and writes y once more


def work(out_features: int, in_features: int, rank: int, rows: int) -> int:
    """Products of both factors, with rows and ranks as kernels take them."""
    return round_up(rows, 16) * round_up(rank, RANK_BLOCK) * (out_features + in_features)


def packed_microseconds(out_features: int, in_features: int, rank: int, rows: int) -> float:
    """By shrink and expand, rows of one task."""
    return PACKED_START + 1e-9 * PACKED * work(out_features, in_features, rank, rows)


def dequantised_microseconds(out_features: int, in_features: int, rank: int, rows: int) -> float:
    """By two library products with factors that are written out before."""
    products = 1e-9 * DEQUANTISED * work(out_features, in_features, rank, rows)
    return DEQUANTISED_START + products + 4 * rows * out_features / BANDWIDTH


def dequantise(p: Problem) -> bool:
    """Whether library products with dequantised factors are the faster way; only where all rows have one entry, as
    each takes products of its own."""
    if p.entries != 1:
        return False
    if p.dtype == "float32":
        return p.rows >= DEQUANTISE_ROWS
    sizes = p.out_features, p.in_features, p.rank, p.rows
    return dequantised_microseconds(*sizes) < packed_microseconds(*sizes)


def choose(p: Problem) -> str | None:
    """Name of the path of a product with kernel words or an arena of samples, None for others."""
    if p.layout == "disk" or p.device not in ("cuda", "interpreter") or p.dtype not in DTYPES or not p.rows:
        return None
    if p.layout == "arena":
        # a dense base, which is for export, has no kernel
        if p.op == "add_dense_samples" or p.device == "cuda" and not dispatch.has_triton():
            return None
        if p.op == "add_sampled_rows":
            return "triton"
        return "dense" if p.transposed or p.entries == 1 and p.rows >= DENSE_ROWS else "triton"
    if p.empty:
        return None
    if p.op == "add_embedding":  # each bank's layout says whether it has levels
        return "triton"
    levels = "_levels" if p.layout == "planar_levels" else ""
    if p.op in ("reconstruct", "delta_embedding"):
        return "triton" + levels
    # levels in 16 bits would be rounded values instead of exact codes, so they stay packed
    exact = not levels or p.dtype == "float32"
    return ("dequantise" if p.transposed or exact and dequantise(p) else "triton") + levels
