"""dequantise: a task's factors as dense matrices of its codes' values, and its numbers, for products with many rows."""

import triton
import triton.language as tl

from .decode import HEADER, combine, decode, find_task, load_rank_words, load_words, rank_order


@triton.jit
def dequantise(
    words,
    scalars,
    table,
    slots,
    place,
    out,
    tasks,
    contracted,
    columns,
    width,
    U: tl.constexpr,
    BLOCK_N: tl.constexpr,
    LEVELS: tl.constexpr,
):
    """out [contracted, width]: the values of V^T [in_features, rank] or, if U, of U [rank, out_features].

    The task is slots[place], read on the device.  What is beyond the task's rank is set to 0.
    contracted: in_features, or for U the rank that out has room for; columns: only for U, out_features rounded up
    to 16.  Grid: (ceil(contracted / 128), ceil(width / BLOCK_N)).
    """
    v, u, scalar, rank = find_task(table, tasks, tl.load(slots + place))
    k = tl.program_id(0) * 128 + tl.arange(0, 128)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    if U:
        word = load_rank_words(words + u, tl.program_id(0), columns, rank, n, n < columns)
        k = rank_order(k)
        ranks = k[:, None] < rank
    else:
        word = load_words(words + v, tl.program_id(0), rank, n, n < rank)
        ranks = n[None, :] < rank
    f = decode(word, "f", tl.float32)
    coefficients = scalars + scalar + (5 if U else 1)
    if LEVELS:
        one = tl.full((128, 1), 1.0, tl.float32)
        f = combine(f, decode(word, "g", tl.float32), decode(word, "b", tl.float32), one, coefficients, LEVELS)
    else:
        f = combine(f, f, f, f, coefficients, LEVELS)
    tl.store(
        out + k.to(tl.int64)[:, None] * width + n[None, :],
        tl.where(ranks, f, 0.0).to(out.dtype.element_ty),
        mask=(k < contracted)[:, None] & (n < width)[None, :],
    )


@triton.jit
def task_numbers(scalars, table, slots, place, sigma, scale, tasks, ranks, BLOCK: tl.constexpr):
    """sigma [ranks] = sigma 2^e of the task slots[place], zeros beyond its rank; scale [1] = 2^-e, or 0 without a task.
    Grid: ceil(ranks / BLOCK)."""
    _, _, scalar, rank = find_task(table, tasks, tl.load(slots + place))
    k = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(sigma + k, tl.load(scalars + scalar + HEADER + k, mask=k < rank, other=0.0), mask=k < ranks)
    tl.store(scale, tl.load(scalars + scalar, mask=rank > 0, other=0.0), mask=tl.program_id(0) == 0)
