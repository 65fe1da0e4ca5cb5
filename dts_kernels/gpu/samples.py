"""Products with sampled elements (`dts_kernels.samples`): straight from the codes, or as a dense matrix.

Arena: all codes in one tensor of bytes, and of every sample a row of table: slot, offset of its codes, stride, seed.
"""

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
def value_of(byte, group):
    """What the code of a group, in its byte, stands for: 1, 4, -1 or -4."""
    code = (byte.to(tl.int32) >> (2 * (group % 4))) & 3
    size = (1 + 3 * (code & 1)).to(tl.float32)
    return tl.where(code >= 2, -size, size)


@triton.jit
def sampled_product(x, y, out, codes, table, starts, scales, slots, weights, slots_known, per_entry, places,
                    in_features, out_features, BLOCK_T: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_G: tl.constexpr):
    """out [rows, out_features] = y + sum over the entry's places of gamma x D^T.

    A program takes BLOCK_M outputs of BLOCK_T rows of one entry; an element is decoded once for all its rows.
    Grid: (ceil(out_features / BLOCK_M), entries * ceil(per_entry / BLOCK_T)).
    """
    blocks = tl.cdiv(per_entry, BLOCK_T)
    entry = tl.program_id(1) // blocks
    first = tl.program_id(1) % blocks * BLOCK_T  # of the entry's rows
    row = (entry.to(tl.int64) * per_entry + first) + tl.arange(0, BLOCK_T)
    real = first + tl.arange(0, BLOCK_T) < per_entry
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    inside = m < out_features
    total = tl.zeros((BLOCK_T, BLOCK_M), tl.float32)
    for place in range(places):
        at = entry.to(tl.int64) * places + place
        start, end = find_samples(starts, slots_known, tl.load(slots + at))
        gamma = tl.load(weights + at)
        for k in range(start, end):
            offset, stride, seed = load_sample(table, k)
            groups = tl.cdiv(in_features, stride)
            width = tl.cdiv(groups, 4)
            block, turned = m // stride, m % stride
            product = tl.zeros((BLOCK_T, BLOCK_M), tl.float32)
            for begin in range(0, groups, BLOCK_G):
                g = begin + tl.arange(0, BLOCK_G)
                column = (turned[:, None] + shift_of(block[:, None], g[None, :], stride, seed)) % stride
                column += (g * stride)[None, :]
                wanted = inside[:, None] & (g < groups)[None, :]
                byte = tl.load(codes + offset + m.to(tl.int64)[:, None] * width + (g // 4)[None, :], mask=wanted,
                               other=0)
                value = value_of(byte, g[None, :])
                for t in tl.static_range(BLOCK_T):
                    here = x + (entry.to(tl.int64) * per_entry + first + t) * in_features
                    most = tl.where(first + t < per_entry, in_features, 0)
                    number = tl.load(here + column, mask=wanted & (column < most), other=0.0).to(tl.float32)
                    own = tl.arange(0, BLOCK_T) == t
                    product += tl.where(own[:, None], tl.sum(number * value, 1)[None, :], 0.0)
            total += product * (tl.load(scales + k) * gamma)
    at_out = row[:, None] * out_features + m[None, :]
    mask = real[:, None] & inside[None, :]
    total += tl.load(y + at_out, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + at_out, total.to(out.dtype.element_ty), mask=mask)


@triton.jit
def sampled_dense(codes, table, starts, scales, slots, weights, place, out, slots_known, m_size, n_size,
                  BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """out [m_size, n_size] = weights[place] times the matrix of slots[place].

    Grid: (ceil(n_size / BLOCK_N), ceil(m_size / BLOCK_M)).
    """
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    m = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    inside = (m < m_size)[:, None] & (n < n_size)[None, :]
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    start, end = find_samples(starts, slots_known, tl.load(slots + place))
    for k in range(start, end):
        offset, stride, seed = load_sample(table, k)
        width = tl.cdiv(tl.cdiv(n_size, stride), 4)
        g = n // stride
        column = (m[:, None] + shift_of((m // stride)[:, None], g[None, :], stride, seed)) % stride
        kept = inside & (column == (n % stride)[None, :])
        byte = tl.load(codes + offset + m.to(tl.int64)[:, None] * width + (g // 4)[None, :], mask=kept, other=0)
        total += tl.where(kept, value_of(byte, g[None, :]), 0.0) * tl.load(scales + k)
    total = total * tl.load(weights + place)
    at = m.to(tl.int64)[:, None] * n_size + n[None, :]
    tl.store(out + at, total.to(out.dtype.element_ty), mask=inside)
