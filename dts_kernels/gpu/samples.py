"""Products with sampled elements (`dts_kernels.samples`): straight from the codes, or as a dense matrix.

Arena: all codes in one tensor of bytes, and of every sample a row of table: slot, offset of its codes, stride, seed.
"""

# mypy: disable-error-code="assignment"
# Triton's tuples grow, and Triton reads no annotations of local names.
import triton
import triton.language as tl

SAMPLE_FIELDS = tl.constexpr(4)


@triton.jit
def find_samples(starts, slots_known, slot):
    """(first, end) of a slot's rows of the table; nothing where the slot is -1 or unknown."""
    known = (slot >= 0) & (slot < slots_known)
    at = starts + slot.to(tl.int64)
    return (tl.load(at, mask=known, other=0).to(tl.int32), tl.load(at + 1, mask=known, other=0).to(tl.int32))


@triton.jit
def load_sample(table, k):
    """(offset of the codes, stride, seed) of row k."""
    row = table + k * SAMPLE_FIELDS
    return tl.load(row + 1), tl.load(row + 2).to(tl.int32), tl.load(row + 3).to(tl.uint32)


@triton.jit
def shift_of(block, group, stride, seed):
    """How far the diagonal of a block of rows and a group of columns is turned: `dts_kernels.samples`, 32 bits."""
    h = seed + block.to(tl.uint32) * 0x9E3779B1 + group.to(tl.uint32) * 0x85EBCA77
    h = h ^ (h >> 16)
    h = h * 0x85EBCA6B
    h = h ^ (h >> 13)
    h = h * 0xC2B2AE35
    h = h ^ (h >> 16)
    return (((h >> 16) * stride.to(tl.uint32)) >> 16).to(tl.int32)


@triton.jit
def value_of(byte, place_in_byte):
    """What a code of a byte stands for: 1, 4, -1 or -4."""
    code = byte.to(tl.int32) >> (2 * place_in_byte)
    size = 1 + 3 * (code & 1)
    return tl.where((code & 2) != 0, -size, size).to(tl.float32)


@triton.jit
def turn(turned, shift, stride):
    """(turned + shift) mod stride of two that are below it, without a division."""
    at = turned + shift
    return tl.where(at >= stride, at - stride, at)


@triton.jit
def _zeros(COUNT: tl.constexpr, SHAPE: tl.constexpr):
    made = ()
    for _ in tl.static_range(COUNT):
        made = made + (tl.zeros(SHAPE, tl.float32),)
    return made


@triton.jit
def _add_row_products(products, x, column, value, rows, in_features, COUNT: tl.constexpr):
    """products + a row of x each times value; the rows are one after another, the last of them again and again."""
    made = ()
    wanted = column < in_features  # groups that are not there are beyond it, too
    for t in tl.static_range(COUNT):
        here = x + tl.minimum(rows - 1, t) * in_features  # rows that are not there need no mask of their own
        made = made + (products[t] + tl.load(here + column, mask=wanted, other=0.0).to(tl.float32) * value,)
    return made


@triton.jit
def _add_sums(totals, products, scale, COUNT: tl.constexpr):
    made = ()
    for t in tl.static_range(COUNT):
        made = made + (totals[t] + tl.sum(products[t], 1) * scale,)
    return made


@triton.jit
def sampled_product(
    x,
    y,
    out,
    codes,
    table,
    starts,
    scales,
    slots,
    weights,
    slots_known,
    per_entry,
    places,
    in_features,
    out_features,
    BLOCK_T: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_B: tl.constexpr,
):
    """out [rows, out_features] = y + sum over the entry's places of gamma x D^T.

    A program takes BLOCK_M outputs of BLOCK_T rows of one entry, BLOCK_B bytes of codes at a time; a byte is loaded
    once and an element is decoded once for all its rows.
    Grid: (ceil(out_features / BLOCK_M), entries * ceil(per_entry / BLOCK_T)).
    """
    blocks = tl.cdiv(per_entry, BLOCK_T)
    entry = tl.program_id(1) // blocks
    first = tl.program_id(1) % blocks * BLOCK_T  # of the entry's rows
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    known = m < out_features
    totals = _zeros(BLOCK_T, (BLOCK_M,))
    start_of = x + (entry.to(tl.int64) * per_entry + first) * in_features
    for place in range(places):
        at = entry.to(tl.int64) * places + place
        start, end = find_samples(starts, slots_known, tl.load(slots + at))
        gamma = tl.load(weights + at)
        for k in range(start, end):
            offset, stride, seed = load_sample(table, k)
            width = tl.cdiv(tl.cdiv(in_features, stride), 4)
            block, turned = (m // stride)[:, None], (m % stride)[:, None]
            of_output = (codes + offset + m.to(tl.int64) * width)[:, None]
            # summed over the bytes at the end: a sum across threads for every tile would cost more than the tile
            products = _zeros(BLOCK_T, (BLOCK_M, BLOCK_B))
            for begin in range(0, width, BLOCK_B):
                b = (begin + tl.arange(0, BLOCK_B))[None, :]
                byte = tl.load(of_output + b, mask=known[:, None] & (b < width), other=0)
                for i in tl.static_range(4):
                    g = 4 * b + i
                    column = g * stride + turn(turned, shift_of(block, g, stride, seed), stride)
                    products = _add_row_products(
                        products, start_of, column, value_of(byte, i), per_entry - first, in_features, BLOCK_T
                    )
            totals = _add_sums(totals, products, tl.load(scales + k) * gamma, BLOCK_T)
    for t in tl.static_range(BLOCK_T):
        at_out = (entry.to(tl.int64) * per_entry + first + t) * out_features + m
        mask = m < tl.where(first + t < per_entry, out_features, 0)
        total = totals[t] + tl.load(y + at_out, mask=mask, other=0.0).to(tl.float32)
        tl.store(out + at_out, total.to(out.dtype.element_ty), mask=mask)


@triton.jit
def sampled_dense(
    codes,
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
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """out [m_size, n_size] times factor [1] = weights[place] times the matrix of slots[place].

    The slot's largest scale is in factor, so out holds small numbers around 1: those of a single sample are exact in
    16 bits, and scales that fp16 has no bits for are no loss.
    Grid: (ceil(n_size / BLOCK_N), ceil(m_size / BLOCK_M)).
    """
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    m = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    inside = (m < m_size)[:, None] & (n < n_size)[None, :]
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    start, end = find_samples(starts, slots_known, tl.load(slots + place))
    largest = tl.full((), 0.0, tl.float32)
    for k in range(start, end):
        largest = tl.maximum(largest, tl.abs(tl.load(scales + k)))
    unit = tl.where(largest > 0, largest, 1.0)
    for k in range(start, end):
        offset, stride, seed = load_sample(table, k)
        width = tl.cdiv(tl.cdiv(n_size, stride), 4)
        g = n // stride
        shift = shift_of((m // stride)[:, None], g[None, :], stride, seed)
        kept = inside & (turn((m % stride)[:, None], shift, stride) == (n % stride)[None, :])
        byte = tl.load(codes + offset + m.to(tl.int64)[:, None] * width + (g // 4)[None, :], mask=kept, other=0)
        total += tl.where(kept, value_of(byte, g[None, :] % 4), 0.0) * (tl.load(scales + k) / unit)
    at = m.to(tl.int64)[:, None] * n_size + n[None, :]
    tl.store(out + at, total.to(out.dtype.element_ty), mask=inside)
    tl.store(factor, unit * tl.load(weights + place), mask=(tl.program_id(0) == 0) & (tl.program_id(1) == 0))
