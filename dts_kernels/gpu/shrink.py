"""shrink: t = round(gamma 2^e (x V^T) o sigma) for every row and every place of its routing entry; of one matrix, or of
some that are multiplied with the same x."""

import triton
import triton.language as tl

from .decode import HEADER, combine, find_task, load_words, packed_dot, rank_order, select_rows


@triton.jit
def shrunk(
    x,
    words,
    scalars,
    table,
    slots,
    weights,
    tasks,
    entries,
    per_entry,
    places,
    in_features,
    column,
    place,
    part,
    BLOCK_T: tl.constexpr,
    BLOCK_N: tl.constexpr,
    SPLIT: tl.constexpr,
    GROUPED: tl.constexpr,
    ENTRIES: tl.constexpr,
    LEVELS: tl.constexpr,
    ASM: tl.constexpr,
):
    """(t's numbers, float32 [BLOCK_T, BLOCK_N], their rows, which are real, their ranks, the task's rank) of a program;
    column: its block of ranks."""
    row, real, entry = select_rows(slots, tl.program_id(1), entries, per_entry, places, BLOCK_T, GROUPED, ENTRIES)
    v, _, scalar, rank = find_task(table, tasks, tl.load(slots + entry.to(tl.int64) * places + place))
    n = column * BLOCK_N + tl.arange(0, BLOCK_N)
    # a program without rows or columns goes through none of the blocks
    busy = (tl.sum(real.to(tl.int32), 0) > 0) & (column * BLOCK_N < rank)
    k = tl.arange(0, 128)

    f = tl.zeros((BLOCK_T, BLOCK_N), tl.float32)
    g = tl.zeros((BLOCK_T, BLOCK_N), tl.float32)
    b = tl.zeros((BLOCK_T, BLOCK_N), tl.float32)
    one = tl.zeros((BLOCK_T, 128), tl.float32)
    for block in range(part, tl.where(busy, tl.cdiv(in_features, 128), 0), SPLIT):
        word = load_words(words + v, block, rank, n, n < rank)
        inside = block * 128 + k
        tile = tl.load(
            x + row[:, None] * in_features + inside[None, :],
            mask=real[:, None] & (inside < in_features)[None, :],
            other=0.0,
        )
        f, g, b, one = packed_dot(tile, word, f, g, b, one, LEVELS, ASM)

    out = combine(f, g, b, one, scalars + scalar + 1, LEVELS)
    out *= tl.load(scalars + scalar + HEADER + n, mask=n < rank, other=0.0)[None, :]
    out *= tl.load(weights + row // per_entry * places + place, mask=real, other=0.0)[:, None]
    out = tl.where((n < rank)[None, :], out, 0.0)  # expand multiplies by them, whatever x is
    return out, row, real, n, rank


@triton.jit
def shrink(
    x,
    words,
    scalars,
    table,
    slots,
    weights,
    t,
    tasks,
    rows,
    entries,
    per_entry,
    places,
    in_features,
    width,
    BLOCK_T: tl.constexpr,
    BLOCK_N: tl.constexpr,
    SPLIT: tl.constexpr,
    GROUPED: tl.constexpr,
    ENTRIES: tl.constexpr,
    LEVELS: tl.constexpr,
    PDL: tl.constexpr,
    ASM: tl.constexpr,
):
    """x [rows, in_features]; t [SPLIT, places, rows, width]: x's dtype, or float32 parts to be summed if SPLIT > 1.

    Ranks are in `rank_order`, zeros up to the next multiple of 128; what is beyond is left as it is.
    Grid: (ceil(width / BLOCK_N), row blocks, places * SPLIT).
    """
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
    place, part = tl.program_id(2) // SPLIT, tl.program_id(2) % SPLIT
    out, row, real, n, rank = shrunk(
        x,
        words,
        scalars,
        table,
        slots,
        weights,
        tasks,
        entries,
        per_entry,
        places,
        in_features,
        tl.program_id(0),
        place,
        part,
        BLOCK_T,
        BLOCK_N,
        SPLIT,
        GROUPED,
        ENTRIES,
        LEVELS,
        ASM,
    )
    at = ((part * places + place).to(tl.int64) * rows + row) * width
    wanted = real[:, None] & (n < tl.cdiv(rank, 128) * 128)[None, :]
    tl.store(t + at[:, None] + rank_order(n)[None, :], out.to(t.dtype.element_ty), mask=wanted)


@triton.jit
def shrink_together(
    x,
    words,
    words_1,
    words_2,
    scalars,
    scalars_1,
    scalars_2,
    table,
    table_1,
    table_2,
    slots,
    weights,
    t,
    tasks,
    tasks_1,
    tasks_2,
    width,
    width_1,
    width_2,
    rows,
    entries,
    per_entry,
    places,
    in_features,
    MATRICES: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_N: tl.constexpr,
    SPLIT: tl.constexpr,
    GROUPED: tl.constexpr,
    ENTRIES: tl.constexpr,
    LEVELS: tl.constexpr,
    ASM: tl.constexpr,
):
    """`shrink` of one x for two or three matrices, bit for bit, each with a bank of its own.

    t: float32 [SPLIT, all of theirs] or x's dtype [all of theirs], one [places, rows, its width] behind the other.
    With two, what ends in _2 is not looked at.
    Grid: (the sum of ceil(width / BLOCK_N), row blocks, places * SPLIT).
    """
    place, part = tl.program_id(2) // SPLIT, tl.program_id(2) % SPLIT
    column, widths = tl.program_id(0), width + width_1
    beyond = tl.cdiv(width, BLOCK_N)
    other = column >= beyond
    if MATRICES > 2:
        widths += width_2
        third = beyond + tl.cdiv(width_1, BLOCK_N)
        last = column >= third
        beyond = tl.where(last, third, beyond)
        before = tl.where(last, width + width_1, tl.where(other, width, 0))
        width_1 = tl.where(last, width_2, width_1)
        tasks_1 = tl.where(last, tasks_2, tasks_1)
        words_1 = tl.where(last, words_2, words_1)
        scalars_1 = tl.where(last, scalars_2, scalars_1)
        table_1 = tl.where(last, table_2, table_1)
    else:
        before = tl.where(other, width, 0)
    out, row, real, n, rank = shrunk(
        x,
        tl.where(other, words_1, words),
        tl.where(other, scalars_1, scalars),
        tl.where(other, table_1, table),
        slots,
        weights,
        tl.where(other, tasks_1, tasks),
        entries,
        per_entry,
        places,
        in_features,
        tl.where(other, column - beyond, column),
        place,
        part,
        BLOCK_T,
        BLOCK_N,
        SPLIT,
        GROUPED,
        ENTRIES,
        LEVELS,
        ASM,
    )
    count = tl.full((), 1, tl.int64) * places * rows
    own = place * rows + row  # int64
    at = (part * widths + before) * count + own * tl.where(other, width_1, width)
    wanted = real[:, None] & (n < tl.cdiv(rank, 128) * 128)[None, :]
    tl.store(t + at[:, None] + rank_order(n)[None, :], out.to(t.dtype.element_ty), mask=wanted)


@triton.jit
def combine_parts(parts, t, size, PARTS: tl.constexpr, BLOCK: tl.constexpr):
    """t [size] = round(the sum of parts [PARTS, size], float32, in their order): what every program of expand would do
    for itself.  Grid: ceil(size / BLOCK)."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    total = tl.load(parts + at, mask=at < size, other=0.0)
    for part in tl.static_range(1, PARTS):
        total += tl.load(parts + part * size.to(tl.int64) + at, mask=at < size, other=0.0)
    tl.store(t + at, total.to(t.dtype.element_ty), mask=at < size)
