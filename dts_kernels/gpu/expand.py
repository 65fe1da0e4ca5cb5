"""expand: y += 2^-e t U^T, summed over the places of each row's routing entry."""

import triton
import triton.language as tl

from .decode import combine, find_task, load_last_ranks, load_words, packed_dot, select_rows


@triton.jit
def load_parts(at, stride, real, SPLIT: tl.constexpr):
    """The sum of t's parts at 128 columns from the pointers at [BLOCK_T] on, in the order of the parts."""
    inside = at[:, None] + tl.arange(0, 128)[None, :]
    tile = tl.load(inside, mask=real[:, None], other=0.0)
    for part in tl.static_range(1, SPLIT):
        tile += tl.load(inside + part * stride, mask=real[:, None], other=0.0)
    return tile


@triton.jit
def expanded(
    t,
    words,
    scalars,
    table,
    slots,
    tasks,
    rows,
    places,
    width,
    out_columns,
    row,
    real,
    entry,
    n,
    D: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_N: tl.constexpr,
    SPLIT: tl.constexpr,
    LEVELS: tl.constexpr,
    ASM: tl.constexpr,
):
    """float32 [BLOCK_T, BLOCK_N]: sum over places of 2^-e t U^T for rows ``row`` and columns ``n``."""
    total = tl.zeros((BLOCK_T, BLOCK_N), tl.float32)
    any_row = tl.sum(real.to(tl.int32), 0) > 0
    stride = tl.full((), 1, tl.int64) * places * rows * width  # between the parts of t
    for place in range(places):
        _, u, scalar, rank = find_task(table, tasks, tl.load(slots + entry.to(tl.int64) * places + place))
        f = tl.zeros((BLOCK_T, BLOCK_N), tl.float32)
        g = tl.zeros((BLOCK_T, BLOCK_N), tl.float32)
        b = tl.zeros((BLOCK_T, BLOCK_N), tl.float32)
        one = tl.zeros((BLOCK_T, 128), tl.float32)
        at = t + (place * rows + row) * width
        for block in range(0, tl.where(any_row, rank // 128, 0)):
            word = load_words(words + u, block, out_columns, n, n < out_columns)
            tile = load_parts(at + block * 128, stride, real, SPLIT)
            f, g, b, one = packed_dot(tile.to(D), word, f, g, b, one, LEVELS, ASM)
        if any_row & (rank % 128 > 0):
            word = load_last_ranks(words + u, out_columns, rank, n, n < out_columns)
            tile = load_parts(at + rank // 128 * 128, stride, real, SPLIT)
            f, g, b, one = packed_dot(tile.to(D), word, f, g, b, one, LEVELS, ASM)
        scale = tl.load(scalars + scalar, mask=rank > 0, other=0.0)
        if LEVELS:  # an empty slot has no header: it reads the anchor's zeros, and its sums are 0
            total += scale * combine(f, g, b, one, scalars + scalar + 5, LEVELS)
        else:
            total += scale * combine(f, g, b, one, scalars, LEVELS)
    return total


@triton.jit
def expand(
    t,
    words,
    scalars,
    table,
    slots,
    y,
    out,
    adds,
    weights,
    tasks,
    rows,
    entries,
    per_entry,
    places,
    width,
    out_features,
    out_columns,
    known,
    BLOCK_T: tl.constexpr,
    BLOCK_N: tl.constexpr,
    SPLIT: tl.constexpr,
    GROUPED: tl.constexpr,
    ENTRIES: tl.constexpr,
    LEVELS: tl.constexpr,
    ADD: tl.constexpr,
    ADDS: tl.constexpr,
    ASM: tl.constexpr,
):
    """t [SPLIT, places, rows, width] of `shrink`; out [rows, out_features] = y (if ADD) + the product, in out's dtype,
    and (if ADDS) + weights times adds [known, out_features] of each row's tasks, rounded again, as `task_rows` does it.

    out_columns: out_features rounded up to 16, the row length of U's words.
    Grid: (ceil(out_features / BLOCK_N), row blocks).
    """
    row, real, entry = select_rows(slots, tl.program_id(1), entries, per_entry, places, BLOCK_T, GROUPED, ENTRIES)
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    total = expanded(
        t,
        words,
        scalars,
        table,
        slots,
        tasks,
        rows,
        places,
        width,
        out_columns,
        row,
        real,
        entry,
        n,
        out.dtype.element_ty,
        BLOCK_T,
        BLOCK_N,
        SPLIT,
        LEVELS,
        ASM,
    )
    at = row[:, None] * out_features + n[None, :]
    mask = real[:, None] & (n < out_features)[None, :]
    if ADD:
        total += tl.load(y + at, mask=mask, other=0.0).to(tl.float32)
    if ADDS:
        total = total.to(out.dtype.element_ty).to(tl.float32)
        for place in range(places):
            slot = tl.load(slots + entry.to(tl.int64) * places + place).to(tl.int64)
            there = (slot >= 0) & (slot < known)
            own = tl.load(adds + slot * out_features + n, mask=n < tl.where(there, out_features, 0), other=0.0)
            gamma = tl.load(weights + row // per_entry * places + place, mask=real, other=0.0)
            total += own.to(tl.float32)[None, :] * gamma[:, None]
    tl.store(out + at, total.to(out.dtype.element_ty), mask=mask)
