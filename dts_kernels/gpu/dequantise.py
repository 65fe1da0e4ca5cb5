"""dequantise: a task's factors as dense matrices of its codes' values, for products of the library with many rows; and
what is done to these products."""

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
def round_t(t, scalars, table, slots, weights, place, out, tasks, width, SCALE: tl.constexpr, BLOCK: tl.constexpr):
    """out [rows, width] = round(t o gamma sigma 2^e) of the task slots[place], times 2^-e if SCALE, which is exact.

    t float32 [rows, width] = x V; what is beyond the task's rank is 0.  Grid: (rows, ceil(width / BLOCK)).
    """
    _, _, scalar, rank = find_task(table, tasks, tl.load(slots + place))
    k = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    at = tl.program_id(0).to(tl.int64) * width + k
    inside = k < width
    sigma = tl.load(scalars + scalar + HEADER + k, mask=k < rank, other=0.0) * tl.load(weights + place)
    rounded = (tl.load(t + at, mask=inside, other=0.0) * sigma).to(out.dtype.element_ty)
    if SCALE:
        scale = tl.load(scalars + scalar, mask=rank > 0, other=0.0)
        rounded = (rounded.to(tl.float32) * scale).to(out.dtype.element_ty)
    tl.store(out + at, rounded, mask=inside)


@triton.jit
def add_product(product, scalars, table, slots, place, y, out, tasks, size, ADD: tl.constexpr, BLOCK: tl.constexpr):
    """out [size] = round(y (if ADD) + 2^-e product), of the task slots[place].  Grid: ceil(size / BLOCK)."""
    _, _, scalar, rank = find_task(table, tasks, tl.load(slots + place))
    scale = tl.load(scalars + scalar, mask=rank > 0, other=0.0)
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    total = tl.load(product + at, mask=at < size, other=0.0) * scale
    if ADD:
        total += tl.load(y + at, mask=at < size, other=0.0).to(tl.float32)
    tl.store(out + at, total.to(out.dtype.element_ty), mask=at < size)
