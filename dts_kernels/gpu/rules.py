"""Which GPU path a product takes.

triton       kernels that decode in registers; ``triton_levels``: of a bank in which a task has levels
dequantise   factors written out for the library's products, when many rows share them; ``dequantise_levels``
dense        sampled elements as a dense matrix for the library's products
"""

from .. import dispatch
from ..dispatch import Problem

DTYPES = ("float16", "bfloat16", "float32")
DENSE_ROWS = 64  # of one task, from here a dense matrix and a library product; modelled, not measured
# of one task, from here two library products with dequantised factors.  *Measured* on an H100, times the base alone, by
# the packed kernels and by these: 512 rows, r = .3: 3.2, 2.6; 4,096 rows, r = .3: 3.1, 1.9; r = .05: 1.59, 1.48.  Where
# between 16 and 512 rows they meet is modelled, not measured
DEQUANTISE_ROWS = 256


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
    # an embedding's rows have no kernel: the reference waits for the device and no CUDA graph can capture it
    if p.op == "delta_embedding" or p.empty:
        return None
    levels = "_levels" if p.layout == "planar_levels" else ""
    if p.op == "reconstruct":
        return "triton" + levels
    # levels in 16 bits would be rounded values instead of exact codes, so they stay packed
    exact = not levels or p.dtype == "float32"
    many = p.entries == 1 and p.rows >= DEQUANTISE_ROWS and exact
    return ("dequantise" if p.transposed or many else "triton") + levels
