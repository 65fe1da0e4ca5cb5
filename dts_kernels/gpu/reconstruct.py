"""reconstruct: W + sum over tasks of gamma U diag(sigma) V, tile by tile, straight into the wanted dtype; and rows of
it."""

import triton
import triton.language as tl

from .decode import HEADER, combine, decode, find_task, load_rank_words, load_words, rank_order, select_rows


@triton.jit
def _values(word, coefficients, LEVELS: tl.constexpr, D: tl.constexpr):
    f = decode(word, "f", D)
    if LEVELS:
        one = tl.full((128, 1), 1.0, tl.float32)
        return combine(f, decode(word, "g", D), decode(word, "b", D), one, coefficients, LEVELS)
    return f


@triton.jit
def delta_tile(
    words,
    scalars,
    table,
    tasks,
    slot,
    column_block,
    m,
    inside,
    out_columns,
    M: tl.constexpr,
    LEVELS: tl.constexpr,
    D: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """float32 [128, M]: columns 128 column_block ... of the rows m [M] of a slot's delta.

    What it has for rows not inside means nothing.  V's words contract over the columns, U's over the rank, so it is
    transposed.  D and PRECISION: see `reconstruct`.
    """
    v, u, scalar, rank = find_task(table, tasks, slot)
    product = tl.zeros((128, M), tl.float32)
    for block in range(0, tl.cdiv(rank, 128)):
        k = rank_order(block * 128 + tl.arange(0, 128))
        sigma = tl.load(scalars + scalar + HEADER + k, mask=k < rank, other=0.0)
        left = _values(load_words(words + v, column_block, rank, k, k < rank), scalars + scalar + 1, LEVELS, D)
        right = _values(
            load_rank_words(words + u, block, out_columns, rank, m, inside), scalars + scalar + 5, LEVELS, D
        )
        left = (left.to(tl.float32) * sigma[None, :]).to(D)
        product = tl.dot(left, right.to(D), product, input_precision=PRECISION)
    scale = tl.load(scalars + scalar, mask=rank > 0, other=0.0)
    return product * (scale if LEVELS else scale * 16.0)


@triton.jit
def reconstruct(
    words,
    scalars,
    table,
    slots,
    gamma,
    base,
    out,
    tasks,
    places,
    in_features,
    out_features,
    out_columns,
    BLOCK_M: tl.constexpr,
    LEVELS: tl.constexpr,
    ADD: tl.constexpr,
    D: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """out [out_features, in_features] = base (if ADD) + sum over p of gamma[p] times the delta of slots[p].

    D: what is multiplied; float32 with levels, which 16 bits would round.  PRECISION: of float32 products, "tf32"
    where out has 16 bits, else "ieee".
    Grid: (ceil(in_features / 128), ceil(out_features / BLOCK_M)).
    """
    n = tl.program_id(0) * 128 + tl.arange(0, 128)
    m = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    total = tl.zeros((128, BLOCK_M), tl.float32)
    for place in range(places):
        tile = delta_tile(
            words,
            scalars,
            table,
            tasks,
            tl.load(slots + place),
            tl.program_id(0),
            m,
            m < out_columns,
            out_columns,
            BLOCK_M,
            LEVELS,
            D,
            PRECISION,
        )
        total += tile * tl.load(gamma + place)
    at = m.to(tl.int64)[None, :] * in_features + n[:, None]
    mask = (m < out_features)[None, :] & (n < in_features)[:, None]
    if ADD:
        total += tl.load(base + at, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + at, total.to(out.dtype.element_ty), mask=mask)


@triton.jit
def delta_rows(
    ids,
    words,
    scalars,
    table,
    slots,
    weights,
    y,
    out,
    tasks,
    rows,
    entries,
    per_entry,
    places,
    in_features,
    out_features,
    out_columns,
    BLOCK_T: tl.constexpr,
    GROUPED: tl.constexpr,
    ENTRIES: tl.constexpr,
    LEVELS: tl.constexpr,
    ADD: tl.constexpr,
    D: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """out [rows, in_features] = y (if ADD) + rows ``ids`` of the deltas of each row's tasks, gamma times each, summed
    and rounded once: zeros for negative ids, NaN for those that no row has.  out may be y.

    Grid: (ceil(in_features / 128), row blocks).
    """
    row, real, entry = select_rows(slots, tl.program_id(1), entries, per_entry, places, BLOCK_T, GROUPED, ENTRIES)
    wanted = tl.load(ids + row, mask=real, other=-1)
    there = (wanted >= 0) & (wanted < out_features)
    m = tl.where(there, wanted, 0).to(tl.int32)
    n = tl.program_id(0) * 128 + tl.arange(0, 128)
    total = tl.zeros((128, BLOCK_T), tl.float32)
    any_row = tl.sum(there.to(tl.int32), 0) > 0
    for place in range(tl.where(any_row, places, 0)):
        of_place = entry.to(tl.int64) * places + place
        tile = delta_tile(
            words,
            scalars,
            table,
            tasks,
            tl.load(slots + of_place),
            tl.program_id(0),
            m,
            there,
            out_columns,
            BLOCK_T,
            LEVELS,
            D,
            PRECISION,
        )
        total += tile * tl.load(weights + of_place)
    # a row that is not there has the values of code 0, which are not zeros
    total = tl.where(there[None, :], total, tl.where(wanted < 0, 0.0, float("nan"))[None, :])
    at = row[None, :] * in_features + n[:, None]
    mask = real[None, :] & (n < in_features)[:, None]
    if ADD:
        total += tl.load(y + at, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + at, total.to(out.dtype.element_ty), mask=mask)
