"""dequantise: one factor of a task as a dense matrix of its codes' values, for products with many rows."""

import triton
import triton.language as tl

from .decode import combine, decode, find_task, load_words


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
        stride, start, ranks = columns, words + u, k[:, None] < rank
        stored = tl.where(tl.program_id(0) * 128 < rank, stride, 0)
    else:
        stride, start, ranks = tl.cdiv(rank, 16) * 16, words + v, n[None, :] < rank
        stored = stride
    word = load_words(start, tl.program_id(0), stride, n, n < stored)
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
