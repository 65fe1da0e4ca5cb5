"""A pass over the components of one side of many matrices: `dts.codec.alternations.sweep`, chunk by chunk.

What the components before a chunk changed is taken in by one product a chunk; within it components move one by one, on
a GPU in a kernel (`dts_kernels.gpu.sweep`), elsewhere by `chunk_moves`.
"""

from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

from ..alternations import rounded

CHUNK = 64


def sweep(
    factor: Tensor, moments: Tensor, gram: Tensor, sigma: Tensor, relaxation: float, mask: Tensor, ranks: Tensor
) -> None:
    """In place.

    factor: float32 [B, k, m], the side that is rounded; moments: [B, k, m], the other side times delta;
    gram: [B, k, k], the other side's; sigma: [B, k], positive; mask: bool [B, k], which components there are, the first
    ``ranks`` int32 [B]; the others stay 0.
    """
    step = torch.where(mask, relaxation / (gram.diagonal(dim1=1, dim2=2) * sigma), 0.0)
    weighted = gram * sigma[:, None, :]
    old = factor.clone() if in_kernel(factor.device.type) else factor
    for first in range(0, factor.shape[1], CHUNK):
        last = first + CHUNK
        misfit = torch.baddbmm(moments[:, first:last], weighted[:, first:last], factor, alpha=-1)
        if old is not factor:
            from dts_kernels.gpu.sweep import sweep as kernel

            kernel(old, factor, misfit, gram, sigma, step, ranks, first)
        else:
            chunk_moves(factor, misfit, gram, sigma, step, mask, first)


def chunk_moves(
    factor: Tensor, misfit: Tensor, gram: Tensor, sigma: Tensor, step: Tensor, mask: Tensor, first: int
) -> None:
    """The components of a chunk from ``first`` on, one by one: what the kernel does, in operations on all columns."""
    last = first + misfit.shape[1]
    weighted = gram[:, first:last, first:last] * sigma[:, None, first:last]
    for k in range(first, last):
        before, i = factor[:, k], k - first
        after = rounded(torch.addcmul(before, misfit[:, i], step[:, k, None])) * mask[:, k, None]
        misfit[:, i + 1 :].addcmul_(weighted[:, i + 1 :, i, None], (before - after)[:, None])
        factor[:, k] = after


@cache
def in_kernel(kind: str) -> bool:
    """Does a kernel take the chunks on this kind of device?"""
    return kind == "cuda" and find_spec("triton") is not None
