"""sampled_dense and sampled_rows: a task's samples as a dense matrix, and rows of it."""

# mypy: disable-error-code="assignment"
# Triton's tuples grow, and Triton reads no annotations of local names.
import triton
import triton.language as tl

from .samples import (
    PLAIN,
    RUN,
    TWO_BLOCKS,
    element_of,
    find_samples,
    hash_of_block,
    hash_of_group,
    load_sample,
    load_share,
    quarter,
    shift_of,
    wrap,
)


@triton.jit
def _code_at(words, offset, element, row, runs, there):
    """A quarter of the value of an element of each of the columns, of one row; 0 where not ``there``."""
    at = offset + ((element // 4).to(tl.int64) * runs + row // RUN) * 2 + element % 4 // 2
    word = tl.load(words + at, mask=there, other=0).to(tl.uint32, bitcast=True)
    by = (2 * (row % RUN + RUN * (element % 2))).to(tl.uint32)
    return tl.where(there, quarter((word >> by) | (word << ((32 - by) & 31)), 0), 0.0)


@triton.jit
def sampled_dense(
    words,
    table,
    starts,
    scales,
    slots,
    weights,
    place,
    out,
    factor,
    slots_known,
    m_size,
    n_size,
    BLOCK_N: tl.constexpr,
    FIELDS: tl.constexpr,
):
    """out [m_size, n_size] times factor [1] = weights[place] times the matrix of slots[place].

    The slot's largest scale is in factor, so out holds small numbers around 1: those of a single sample are exact in
    16 bits, and scales that fp16 has no bits for are no loss.  A program takes eight rows: what turns a group's columns
    in them is found once for all.
    Grid: (ceil(n_size / BLOCK_N), ceil(m_size / 8)).
    """
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    run, runs = tl.program_id(1), tl.cdiv(m_size, RUN)
    row = run * RUN
    start, end = find_samples(starts, slots_known, tl.load(slots + place))
    largest = tl.full((), 0.0, tl.float32)
    for k in range(start, end):
        largest = tl.maximum(largest, tl.abs(tl.load(scales + k)))
    unit = tl.where(largest > 0, largest, 1.0)
    totals = ()
    for _ in tl.static_range(RUN):
        totals = totals + (tl.zeros((BLOCK_N,), tl.float32),)
    for k in range(start, end):
        offset, stride, seed = load_sample(table, k, FIELDS)
        scale = 4.0 * (tl.load(scales + k) / unit)
        group = n // stride
        inside_group = n - group * stride
        have = n_size  # columns of groups that all have an element
        if FIELDS > PLAIN:
            share, window = load_share(table, k, FIELDS)
            have = tl.where(window == 1, n_size, 0)
        at = offset + ((group // 4).to(tl.int64) * runs + run) * 2 + group % 4 // 2
        word = tl.load(words + at, mask=n < have, other=0).to(tl.uint32, bitcast=True)
        word = tl.where(group % 2 == 1, (word >> 16) | (word << 16), word)
        spread, block = hash_of_group(group), row // stride
        here = shift_of(hash_of_block(seed, block) + spread, stride)
        after = shift_of(hash_of_block(seed, block + 1) + spread, stride)
        left = (block + 1) * stride - row
        made = ()
        for r in tl.static_range(RUN):
            own, shift = block + (r >= left).to(tl.int32), tl.where(r < left, here, after)
            if stride < TWO_BLOCKS:
                own = (row + r) // stride
                shift = shift_of(hash_of_block(seed, own) + spread, stride)
            kept = wrap(row + r - own * stride + shift, stride).to(tl.int32) == inside_group
            if FIELDS > PLAIN:
                kept &= have > 0
            made = made + (totals[r] + tl.where(kept, quarter(word, r) * scale, 0.0),)
        totals = made
        if FIELDS > PLAIN:
            # a thinned sample's elements are in other groups in each block; row by row, so that it takes no registers
            for i in range(0, tl.where(have > 0, 0, RUN)):
                own = (row + i) // stride
                h = hash_of_block(seed, own)
                element, there = element_of(h, group, share, window)
                there &= (
                    wrap(row + i - own * stride + shift_of(h + spread, stride), stride).to(tl.int32) == inside_group
                )
                there &= n < tl.where(row + i < m_size, n_size, 0)
                value = _code_at(words, offset, element, row + i, runs, there) * scale
                made = ()
                for r in tl.static_range(RUN):
                    made = made + (totals[r] + tl.where(i == r, value, 0.0),)
                totals = made
    for r in tl.static_range(RUN):
        to = out + (row + r).to(tl.int64) * n_size + n
        tl.store(to, totals[r].to(out.dtype.element_ty), mask=n < tl.where(row + r < m_size, n_size, 0))
    tl.store(factor, unit * tl.load(weights + place), mask=(tl.program_id(0) == 0) & (tl.program_id(1) == 0))


@triton.jit
def sampled_rows(
    ids,
    y,
    out,
    words,
    table,
    starts,
    scales,
    slots,
    weights,
    slots_known,
    per_entry,
    places,
    m_size,
    n_size,
    BLOCK_N: tl.constexpr,
    FIELDS: tl.constexpr,
):
    """out [ids, n_size] = y + sum over each id's places of gamma times row ``ids`` of D: negative ids add none, those
    that no row has NaN.

    Grid: (ids, ceil(n_size / BLOCK_N)).
    """
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    entry, wanted = tl.program_id(0) // per_entry, tl.load(ids + tl.program_id(0))
    there = (wanted >= 0) & (wanted < m_size)
    row, runs = tl.where(there, wanted, 0).to(tl.int32), tl.cdiv(m_size, RUN)
    at_row = tl.program_id(0).to(tl.int64) * n_size + n
    total = tl.load(y + at_row, mask=n < n_size, other=0.0).to(tl.float32)
    for place in range(places):
        of_place = entry.to(tl.int64) * places + place
        start, end = find_samples(starts, slots_known, tl.load(slots + of_place))
        gamma = tl.load(weights + of_place)
        for k in range(start, tl.where(there, end, start)):
            offset, stride, seed = load_sample(table, k, FIELDS)
            group, block = n // stride, row // stride
            h = hash_of_block(seed, block)
            shift = shift_of(h + hash_of_group(group), stride)
            kept = (wrap(row - block * stride + shift, stride).to(tl.int32) == n - group * stride) & (n < n_size)
            element = group
            if FIELDS > PLAIN:
                share, window = load_share(table, k, FIELDS)
                if window > 1:
                    element, has = element_of(h, group, share, window)
                    kept &= has
            total += _code_at(words, offset, element, row, runs, kept) * (4.0 * tl.load(scales + k) * gamma)
    total = tl.where(wanted < m_size, total, float("nan"))
    tl.store(out + at_row, total.to(out.dtype.element_ty), mask=n < n_size)
