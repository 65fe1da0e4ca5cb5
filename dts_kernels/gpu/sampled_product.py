"""sampled_product: y + gamma x D^T straight from the words, for few rows."""

# mypy: disable-error-code="assignment"
# Triton's tuples grow, and Triton reads no annotations of local names.
import triton
import triton.language as tl

from .samples import (
    PLAIN,
    RUN,
    TWO_BLOCKS,
    elements_of,
    find_samples,
    group_of,
    hash_of_block,
    hash_of_group,
    is_laid,
    load_sample,
    load_share,
    pitch_of,
    quarter,
    shift_of,
    wrap,
)


@triton.jit
def _zeros(COUNT: tl.constexpr, SHAPE: tl.constexpr):
    made = ()
    for _ in tl.static_range(COUNT):
        made = made + (tl.zeros(SHAPE, tl.float32),)
    return made


@triton.jit
def _quad_words(words, quad, quads, run, runs):
    """Both words of every lane's four groups and eight rows."""
    at = ((quad * runs + run) * 2)[:, None] + tl.arange(0, 2)[None, :]
    pair = tl.load(words + at, mask=(quad < quads)[:, None], other=0)
    return tl.split(pair.to(tl.uint32, bitcast=True))


@triton.jit
def _word_of(first, second, h):
    """The word of group h of four, turned so that the group's codes are its first eight."""
    word = tl.where(h < 2, first, second)
    return tl.where(h % 2 == 1, (word >> 16) | (word << 16), word)


@triton.jit
def _add_laid(sums, laid, word, q: tl.constexpr, group, live, here, after, inside, left, stride, BLOCK_T: tl.constexpr):
    """sums + a group of columns of every lane's run of rows, of x as `lay` leaves it: nothing wraps around.

    q: the first of the word's codes;  here, after: the hashes of the run's two blocks;  inside: its first row's place
    in the first;  left: rows of that.
    """
    t = tl.arange(0, BLOCK_T)[None, :]
    spread, of_group = hash_of_group(group), laid + group * (pitch_of(stride) * BLOCK_T)
    before = of_group + wrap(inside + shift_of(here + spread, stride), stride) * BLOCK_T
    behind = of_group + (shift_of(after + spread, stride) - left) * BLOCK_T
    made = ()
    for r in tl.static_range(RUN):
        own = tl.zeros((word.shape[0], BLOCK_T), laid.dtype.element_ty)
        if r > 0:  # which is always in the first block
            own = tl.load(behind[:, None] + r * BLOCK_T + t, mask=(live & (r >= left))[:, None], other=0.0)
        own = tl.load(before[:, None] + r * BLOCK_T + t, mask=(live & (r < left))[:, None], other=own)
        made = made + (sums[r] + quarter(word, q + r)[:, None] * own.to(tl.float32),)
    return made


@triton.jit
def _add_direct(sums, x, first, second, quad, here, after, inside, left, stride, columns,
                MASKED: tl.constexpr):  # fmt: skip
    """The same of a row of x as it is."""
    for h in tl.static_range(4):
        group = 4 * quad + h
        spread, of_group = hash_of_group(group), x + group * stride
        before = inside + shift_of(here + spread, stride)
        behind = shift_of(after + spread, stride) - left
        made = ()
        for r in tl.static_range(RUN):
            column = wrap(tl.where(r < left, before, behind) + r, stride)
            if MASKED:
                mask = column.to(tl.int32) < columns - group * stride  # groups that are not there have no columns
                own = tl.load((of_group + column)[:, None], mask=mask[:, None], other=0.0)
            else:
                own = tl.load((of_group + column)[:, None])
            word = first if h < 2 else second
            made = made + (sums[r] + quarter(word, h % 2 * RUN + r)[:, None] * own.to(tl.float32),)
        sums = made
    return sums


@triton.jit
def _add_any(sums, x, word, group, here, inside, stride, columns, step, t, real):
    """sums + a group of columns, of any stride: eight rows may meet eight blocks, each with its hash.

    step, t [1, BLOCK_T]: from a column to the next, and from a row of x to the next;  real: which of them there are.
    """
    spread, of_group = hash_of_group(group), x + group * stride * step
    made = ()
    for r in tl.static_range(RUN):
        column = wrap(inside + shift_of(here + spread, stride), stride)
        mask = (column.to(tl.int32) < columns - group * stride)[:, None] & real
        own = tl.load((of_group + column * step)[:, None] + t, mask=mask, other=0.0)
        made = made + (sums[r] + quarter(word, r)[:, None] * own.to(tl.float32),)
        last = inside + 1 == stride
        inside = tl.where(last, 0, inside + 1)
        here = tl.where(last, hash_of_block(here, last), here)
    return made


@triton.jit
def _add_thinned(sums, x, word, element, seed, row, stride, kept, window, columns, t, real):
    """The same of an element of a thinned sample, of any stride: a block's rows have it in a group of their own."""
    made = ()
    for r in tl.static_range(RUN):
        block = (row + r) // stride
        here = hash_of_block(seed, block)
        group = group_of(here, element, kept, window)
        turned = wrap(row + r - block * stride + shift_of(here + hash_of_group(group), stride), stride)
        column = group * stride + turned.to(tl.int32)
        own = tl.load(x + (column[:, None] + t), mask=(column < columns)[:, None] & real, other=0.0)
        made = made + (sums[r] + quarter(word, r)[:, None] * own.to(tl.float32),)
    return made


@triton.jit
def _add_thinned_wide(sums, x, word, element, here, after, inside, left, stride, kept, window, columns, t, real):
    """The same, where eight rows meet at most two blocks, with their hashes ``here`` and ``after``."""
    first, second = group_of(here, element, kept, window), group_of(after, element, kept, window)
    before = inside + shift_of(here + hash_of_group(first), stride)
    behind = shift_of(after + hash_of_group(second), stride) - left
    made = ()
    for r in tl.static_range(RUN):
        column = wrap(tl.where(r < left, before, behind) + r, stride).to(tl.int32)
        column += tl.where(r < left, first, second) * stride
        own = tl.load(x + (column[:, None] + t), mask=(column < columns)[:, None] & real, other=0.0)
        made = made + (sums[r] + quarter(word, r)[:, None] * own.to(tl.float32),)
    return made


@triton.jit
def _of_lanes(s, SHAPE: tl.constexpr):
    """Eight tensors [lanes, BLOCK_T] as one [.., runs, BLOCK_T, 8], summed over the lanes of a run."""
    even = tl.join(tl.join(s[0], s[4]), tl.join(s[2], s[6]))
    odd = tl.join(tl.join(s[1], s[5]), tl.join(s[3], s[7]))
    return tl.sum(tl.join(even, odd).reshape(SHAPE), 0)


@triton.jit
def sampled_product(
    x,
    laid,
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
    rows,
    in_features,
    out_features,
    room,
    BLOCK_T: tl.constexpr,
    RUNS: tl.constexpr,
    LANES: tl.constexpr,
    SPLIT: tl.constexpr,
    LAID: tl.constexpr,
    ADD: tl.constexpr,
    FIELDS: tl.constexpr,
):
    """out [rows, out_features] = y + sum over the entry's places of gamma x D^T, if ADD, which has SPLIT 1;  else parts
    of the sum without y, float32 [SPLIT, rows, out_features].

    x: [rows, in_features];  laid: what `lay` made of it, if LAID, else BLOCK_T must be 1.  A program takes RUNS runs of
    eight outputs; LANES lanes of a run share its columns, four groups at a time, and are summed at the end.
    Grid: (ceil(out_features / (8 RUNS)), entries * ceil(per_entry / BLOCK_T), SPLIT).
    """
    blocks = tl.cdiv(per_entry, BLOCK_T)
    entry = tl.program_id(1) // blocks
    lane = tl.arange(0, RUNS * LANES)
    runs = tl.cdiv(out_features, RUN)
    run = tl.minimum(tl.program_id(0) * RUNS + lane % RUNS, runs - 1)
    turn = lane // RUNS * SPLIT + tl.program_id(2)  # of those that share a run's columns
    STEP: tl.constexpr = LANES * SPLIT
    row = run * RUN
    t = tl.program_id(1) % blocks * BLOCK_T + tl.arange(0, BLOCK_T)
    own_x = x + entry.to(tl.int64) * per_entry * in_features
    total = tl.zeros((RUNS, BLOCK_T, RUN), tl.float32)
    for place in range(places):
        of_place = entry.to(tl.int64) * places + place
        start, end = find_samples(starts, slots_known, tl.load(slots + of_place))
        gamma = tl.load(weights + of_place)
        for k in range(start, end):
            offset, stride, seed = load_sample(table, k, FIELDS)
            own, wide = words + offset, stride >= TWO_BLOCKS
            groups = tl.cdiv(in_features, stride)
            if FIELDS > PLAIN:
                _, window = load_share(table, k, FIELDS)
                groups = tl.where(window == 1, groups, 0)  # thinned ones come behind
                wide &= window == 1
            quads = tl.cdiv(groups, 4)
            four = tl.minimum(groups, 4)  # a number that the compiler does not know, so that it unrolls no loop
            block = row // stride
            inside, left = row - block * stride, (block + 1) * stride - row
            here, after = hash_of_block(seed, block), hash_of_block(seed, block + 1)
            sums = _zeros(RUN, (RUNS * LANES, BLOCK_T))
            if LAID:
                from_lay = laid + (tl.program_id(1).to(tl.int64) * places + place) * room * BLOCK_T
                known = (k == start) & is_laid(stride, BLOCK_T)
                for begin in range(0, tl.where(known & wide, quads, 0), STEP):
                    quad = begin + turn
                    first, second = _quad_words(own, quad, quads, run, runs)
                    if BLOCK_T <= 2:
                        for h in tl.static_range(4):
                            word = first if h < 2 else second
                            sums = _add_laid(sums, from_lay, word, h % 2 * RUN, 4 * quad + h, quad < quads, here,
                                             after, inside, left, stride, BLOCK_T)  # fmt: skip
                    else:  # registers for one group's rows of x, not four
                        for h in range(0, four):
                            word = _word_of(first, second, h)
                            sums = _add_laid(sums, from_lay, word, 0, 4 * quad + h, quad < quads, here, after,
                                             inside, left, stride, BLOCK_T)  # fmt: skip
                if BLOCK_T > 1:
                    for begin in range(0, tl.where(known & (stride < TWO_BLOCKS), quads, 0), STEP):
                        quad = begin + turn
                        first, second = _quad_words(own, quad, quads, run, runs)
                        for h in range(0, four):
                            sums = _add_any(sums, from_lay, _word_of(first, second, h), 4 * quad + h, here, inside,
                                            stride, in_features, BLOCK_T, tl.arange(0, BLOCK_T)[None, :],
                                            True)  # fmt: skip
            else:
                known = wide
                whole = tl.where(known, in_features // (4 * STEP * stride) * STEP, 0)  # all columns of every lane
                for begin in range(0, whole, STEP):
                    first, second = _quad_words(own, begin + turn, quads, run, runs)
                    sums = _add_direct(sums, own_x, first, second, begin + turn, here, after, inside, left, stride,
                                       in_features, False)  # fmt: skip
                for begin in range(whole, tl.where(known, quads, 0), STEP):
                    first, second = _quad_words(own, begin + turn, quads, run, runs)
                    sums = _add_direct(sums, own_x, first, second, begin + turn, here, after, inside, left, stride,
                                       in_features, True)  # fmt: skip
            for begin in range(0, tl.where(known, 0, quads), STEP):
                quad = begin + turn
                first, second = _quad_words(own, quad, quads, run, runs)
                for h in range(0, four):
                    sums = _add_any(sums, own_x, _word_of(first, second, h), 4 * quad + h, here, inside,
                                    stride, in_features, 1, (t.to(tl.int64) * in_features)[None, :],
                                    BLOCK_T == 1 or (t < per_entry)[None, :])  # fmt: skip
            total += _of_lanes(sums, (LANES, RUNS, BLOCK_T, RUN)) * (4.0 * tl.load(scales + k) * gamma)
        if FIELDS > PLAIN:
            for k in range(start, end):
                offset, stride, seed = load_sample(table, k, FIELDS)
                kept, window = load_share(table, k, FIELDS)
                elements = elements_of(in_features, stride, kept, window)
                quads = tl.where(window > 1, tl.cdiv(elements, 4), 0)
                four = tl.minimum(elements, 4)
                wide, block = stride >= TWO_BLOCKS, row // stride
                inside, left = row - block * stride, (block + 1) * stride - row
                here, after = hash_of_block(seed, block), hash_of_block(seed, block + 1)
                sums = _zeros(RUN, (RUNS * LANES, BLOCK_T))
                for begin in range(0, tl.where(wide, quads, 0), STEP):
                    quad = begin + turn
                    first, second = _quad_words(words + offset, quad, quads, run, runs)
                    for h in range(0, four):
                        sums = _add_thinned_wide(sums, own_x, _word_of(first, second, h), 4 * quad + h, here, after,
                                                 inside, left, stride, kept, window, in_features,
                                                 (t.to(tl.int64) * in_features)[None, :],
                                                 BLOCK_T == 1 or (t < per_entry)[None, :])  # fmt: skip
                for begin in range(0, tl.where(wide, 0, quads), STEP):
                    quad = begin + turn
                    first, second = _quad_words(words + offset, quad, quads, run, runs)
                    for h in range(0, four):
                        sums = _add_thinned(sums, own_x, _word_of(first, second, h), 4 * quad + h, seed, row, stride,
                                            kept, window, in_features, (t.to(tl.int64) * in_features)[None, :],
                                            BLOCK_T == 1 or (t < per_entry)[None, :])  # fmt: skip
                total += _of_lanes(sums, (LANES, RUNS, BLOCK_T, RUN)) * (4.0 * tl.load(scales + k) * gamma)
    m = (tl.program_id(0) * RUNS + tl.arange(0, RUNS))[:, None, None] * RUN + tl.arange(0, RUN)[None, None, :]
    at = (entry.to(tl.int64) * per_entry + t)[None, :, None] * out_features + m
    mask = (t < per_entry)[None, :, None] & (m < out_features)
    if ADD:
        total += tl.load(y + at, mask=mask, other=0.0).to(tl.float32)
    else:
        at += tl.program_id(2).to(tl.int64) * rows * out_features
    tl.store(out + at, total.to(out.dtype.element_ty), mask=mask)


@triton.jit
def lay(
    x,
    laid,
    table,
    starts,
    slots,
    slots_known,
    per_entry,
    places,
    in_features,
    room,
    BLOCK_T: tl.constexpr,
    BLOCK_N: tl.constexpr,
    FIELDS: tl.constexpr,
):
    """x [rows, in_features] to laid [row blocks, places, room, BLOCK_T] for the first sample of every place, unless it
    is thinned.

    Group after group; from a stride of seven on a group has seven columns more, its first ones again, so that wherever
    a run of eight rows starts in a group, it goes on without a break.  Zeros where a row or a column is not there.
    Grid: (ceil(room / BLOCK_N), row blocks, places).
    """
    blocks = tl.cdiv(per_entry, BLOCK_T)
    entry, place = tl.program_id(1) // blocks, tl.program_id(2)
    start, end = find_samples(starts, slots_known, tl.load(slots + entry.to(tl.int64) * places + place))
    stride = tl.load(table + start * FIELDS + 2, mask=start < end, other=1).to(tl.int32)
    pitch = pitch_of(stride)
    size = tl.where(is_laid(stride, BLOCK_T), tl.cdiv(tl.cdiv(in_features, stride), 4) * 4 * pitch, 0)
    if FIELDS > PLAIN:
        size = tl.where(tl.load(table + start * FIELDS + PLAIN, mask=start < end, other=0) == 0, size, 0)
    at = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    group = at // pitch
    column = group * stride + wrap(at - group * pitch, stride).to(tl.int32)
    t = tl.program_id(1) % blocks * BLOCK_T + tl.arange(0, BLOCK_T)
    rows = (entry.to(tl.int64) * per_entry + t)[None, :] * in_features
    mask = ((at < size) & (column < in_features))[:, None] & (t < per_entry)[None, :]
    tile = tl.load(x + rows + column[:, None], mask=mask, other=0.0)
    to = laid + ((tl.program_id(1).to(tl.int64) * places + place) * room + at)[:, None] * BLOCK_T
    tl.store(to + tl.arange(0, BLOCK_T)[None, :], tile.to(laid.dtype.element_ty), mask=(at < size)[:, None])


@triton.jit
def add_parts(parts, y, out, size, PARTS: tl.constexpr, BLOCK: tl.constexpr):
    """out [size] = round(y + the sum of parts [PARTS, size], float32, in their order).  Grid: ceil(size / BLOCK)."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    stride = tl.full((), 1, tl.int64) * size  # a size of 1 is a constant
    total = tl.load(parts + at, mask=at < size, other=0.0)
    for part in tl.static_range(1, PARTS):
        total += tl.load(parts + part * stride + at, mask=at < size, other=0.0)
    total += tl.load(y + at, mask=at < size, other=0.0).to(tl.float32)
    tl.store(out + at, total.to(out.dtype.element_ty), mask=at < size)
