"""sweep_chunk: one pass of coordinate descent over a chunk of components, for the encoder (`dts.codec.many`).

Columns of a factor do not know of each other, so every program takes some of them through all components of the chunk.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from dts_kernels.layout import VALUES, ceil_div

from .device import on_device

CHUNK = 64  # components that a launch sweeps at most
BLOCK_M, WARPS = 16, 1  # a warp a program: the sums over components that each step takes need no barrier
SMALL, LARGE = VALUES[:2]


@triton.jit
def sweep_chunk(
    old,
    factor,
    misfit,
    gram,
    sigma,
    step,
    ranks,
    first,
    rank,
    columns,
    CHUNK: tl.constexpr,
    BLOCK_M: tl.constexpr,
    SMALL: tl.constexpr,
    LARGE: tl.constexpr,
):
    """factor [B, rank, columns], components first to first + CHUNK of it, one after the other, from where old has them.

    misfit: [B, at most CHUNK, columns], moments less what all components explain of them, of this chunk alone;
    gram: [B, rank, rank], symmetric;  sigma, step: [B, rank];  ranks: int32 [B], components of each that there are.
    All float32.  Grid: (ceil(columns / BLOCK_M), B).
    """
    batch = tl.program_id(1).to(tl.int64)
    column = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    inside = column < columns
    own = tl.arange(0, CHUNK)
    stored = tl.minimum(CHUNK, rank - first)  # rows of misfit
    count = tl.minimum(stored, tl.load(ranks + batch) - first)
    left = tl.load(
        misfit + (batch * stored + own)[:, None] * columns + column[None, :],
        mask=(own < count)[:, None] & inside[None, :],
        other=0.0,
    )
    for i in range(count):
        k = batch * rank + first + i
        before = tl.load(old + k * columns + column, mask=inside, other=0.0)
        moved = before + tl.sum(tl.where((own == i)[:, None], left, 0.0), 0) * tl.load(step + k)
        size = tl.where(tl.abs(moved) > (SMALL + LARGE) / 2, LARGE, SMALL)
        after = tl.where(moved < 0, -size, size)
        tl.store(factor + k * columns + column, after, mask=inside)
        others = tl.load(gram + k * rank + first + own, mask=(own > i) & (own < count), other=0.0)
        left += (others * tl.load(sigma + k))[:, None] * (before - after)[None, :]


def sweep(
    old: Tensor,
    factor: Tensor,
    misfit: Tensor,
    gram: Tensor,
    sigma: Tensor,
    step: Tensor,
    ranks: Tensor,
    first: int,
) -> None:
    """Launches it; shapes and dtypes as the kernel has them, all contiguous, on one device; old: a copy of factor."""
    count, rank, columns = factor.shape
    wrong = [
        name
        for name, tensor, shape, dtype in (
            ("old", old, (count, rank, columns), torch.float32),
            ("factor", factor, (count, rank, columns), torch.float32),
            ("misfit", misfit, (count, min(CHUNK, rank - first), columns), torch.float32),
            ("gram", gram, (count, rank, rank), torch.float32),
            ("sigma", sigma, (count, rank), torch.float32),
            ("step", step, (count, rank), torch.float32),
            ("ranks", ranks, (count,), torch.int32),
        )
        if tensor.shape != shape or tensor.dtype != dtype or not tensor.is_contiguous() or tensor.device != ranks.device
    ]
    if wrong:
        raise ValueError(f"{', '.join(wrong)} cannot be swept: of another shape, dtype, device or layout")
    with on_device(factor):
        sweep_chunk[ceil_div(columns, BLOCK_M), count](
            old, factor, misfit, gram, sigma, step, ranks, first, rank, columns,
            CHUNK=CHUNK, BLOCK_M=BLOCK_M, SMALL=SMALL, LARGE=LARGE, num_warps=WARPS,
        )  # fmt: skip
