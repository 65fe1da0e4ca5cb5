"""Device functions all kernels share: words to numbers, tasks to places in chunks of memory, rows to programs."""

import triton
import triton.language as tl

FIELDS = tl.constexpr(4)  # of a table row: v words, u words, scalars (offsets), rank
HEADER = tl.constexpr(16)  # floats before a task's sigma: 2^-e, 4 coefficients of V, 4 of U (see `planar.py`)


# decode as machine instructions, which compilers of some architectures do not find: off until a GPU has proved it
PICK_ASM = tl.constexpr("{ .reg .b32 w; shf.r.wrap.b32 w, $1, $1, $2; lop3.b32 $0, w, $3, $4, 0xEA; }")
SELECT_ASM = tl.constexpr("lop3.b32 $0, $3, $1, $2, 0xCA;")


@triton.jit
def _turn(word, i: tl.constexpr):
    return ((word >> (2 * i)) | (word << (32 - 2 * i))) if i > 0 else word


@triton.jit
def _pick(word, i: tl.constexpr, mask: tl.constexpr, bits: tl.constexpr, ASM: tl.constexpr):
    """The word turned right by 2 i, only the bits of ``mask``, and ``bits`` set."""
    if ASM:
        return tl.inline_asm_elementwise(
            PICK_ASM, "=r,r,r,r,r", [word, 2 * i, mask, bits], dtype=tl.uint32, is_pure=True, pack=1
        )
    return (_turn(word, i) & mask) | bits


@triton.jit
def _select(mask: tl.constexpr, a, b, ASM: tl.constexpr):
    """a's bits where the mask's are 1, else b's."""
    if ASM:
        return tl.inline_asm_elementwise(SELECT_ASM, "=r,r,r,r", [a, b, mask], dtype=tl.uint32, is_pure=True, pack=1)
    return (a & mask) | (b & (mask ^ 0xFFFFFFFF))


@triton.jit
def _plane(word, i: tl.constexpr, KIND: tl.constexpr, D: tl.constexpr, ASM: tl.constexpr):
    """Words [8, N] to the numbers [8, N, 2] of plane i.  KIND: "f", "g" or "b" of `layout.level_coefficients`."""
    # constants only: one run-time scalar in this chain sends every decoded tile through shared memory
    if D == tl.float16:
        bits = _pick(word, i, 0x88008800, 0x34003400, ASM)
    else:
        bits = _pick(word, i, 0x81008100, 0x3E803E80, ASM)
    if KIND == "g":
        bits = bits ^ 0x08000800 if D == tl.float16 else bits ^ 0x01000100
    if KIND == "b":
        bits = bits & 0x7FFF7FFF
    if D == tl.float32:  # a bf16's bits are the upper half of a float32's
        pair = tl.join((bits << 16).to(tl.float32, bitcast=True), (bits & 0xFFFF0000).to(tl.float32, bitcast=True))
    else:
        pair = tl.join(bits.to(tl.uint16).to(D, bitcast=True), (bits >> 16).to(tl.uint16).to(D, bitcast=True))
    return pair


@triton.jit
def decode(word, KIND: tl.constexpr, D: tl.constexpr, ASM: tl.constexpr = False):
    """uint32 words [8, N] to the numbers D [128, N] they hold, the contraction axis first.

    ASM: the same bits by inline assembly; without it, pure Triton, which the interpreter can run.
    """
    if D == tl.float16:  # move the large bits to fp16's exponent; planes 2, 3, 6, 7 in one word, the rest in the other
        moved = (word << 3) | (word >> 29)
        a = _select(0x82828282, word, moved, ASM)
        b = _select(0x28282828, word, moved, ASM)
    else:
        a, b = word, word
    tile = tl.join(
        tl.join(
            tl.join(_plane(a, 0, KIND, D, ASM), _plane(a, 4, KIND, D, ASM)),
            tl.join(_plane(b, 2, KIND, D, ASM), _plane(b, 6, KIND, D, ASM)),
        ),
        tl.join(
            tl.join(_plane(a, 1, KIND, D, ASM), _plane(a, 5, KIND, D, ASM)),
            tl.join(_plane(b, 3, KIND, D, ASM), _plane(b, 7, KIND, D, ASM)),
        ),
    )  # [p, n, half, bit 2 of the plane, bit 1, bit 0]
    return tile.permute(3, 4, 5, 0, 2, 1).reshape(128, word.shape[1])


@triton.jit
def packed_dot(x, word, f, g, b, one, LEVELS: tl.constexpr, ASM: tl.constexpr):
    """Adds x [T, 128] times each decode of words [8, N] to the accumulators f, g, b [T, N] and x to one [T, 128]."""
    D: tl.constexpr = x.dtype
    f = tl.dot(x, decode(word, "f", D, ASM), f, input_precision="tf32x3")
    if LEVELS:
        g = tl.dot(x, decode(word, "g", D, ASM), g, input_precision="tf32x3")
        b = tl.dot(x, decode(word, "b", D, ASM), b, input_precision="tf32x3")
        one += x.to(tl.float32)
    return f, g, b, one


@triton.jit
def combine(f, g, b, one, coefficients, LEVELS: tl.constexpr):
    """The product [T, N] that the accumulators of `packed_dot` stand for; coefficients: pointer to f, g, b, one."""
    if LEVELS:
        f = f * tl.load(coefficients) + g * tl.load(coefficients + 1) + b * tl.load(coefficients + 2)
        return f + (tl.sum(one, 1) * tl.load(coefficients + 3))[:, None]
    return f * 4.0


@triton.jit
def load_words(words, block, stride, n, inside):
    """Words [8, N] of contraction block ``block``; stride: columns stored; n: columns [N]."""
    p = tl.arange(0, 8)
    offsets = (block * stride + n)[None, :] * 8 + p[:, None]  # eight words of a column together: 16-byte loads
    return tl.load(words + offsets, mask=inside[None, :], other=0).to(tl.uint32)


@triton.jit
def load_last_ranks(words, stride, rank, n, inside):
    """U's words [8, N] of the ranks behind the last whole 128, a row of words for 16 and of half words for the last 1
    to 8 (`layout.rank_words_in_memory`); what is beyond is code 0."""
    p, rows = rank // 128 * 8 + tl.arange(0, 8), (rank + 7) // 16
    offsets = (p * stride)[:, None] + n[None, :]
    word = tl.load(words + offsets, mask=(p < rows)[:, None] & inside[None, :], other=0).to(tl.uint32)
    halves = (words + rows * stride).to(tl.pointer_type(tl.int16), bitcast=True)
    last = (p == rows) & (p * 16 < rank)
    offsets = ((p - rows) * stride)[:, None] + n[None, :]  # two loads of one shape: numbers stay in registers
    half = tl.load(halves + offsets, mask=last[:, None] & inside[None, :], other=0).to(tl.uint32)
    both = ((half & 0xFF) << 8) | ((half & 0xFF00) << 16)
    negative = both & 0xAA00AA00
    return word | (both & 0x55005500) | (negative << 6) | (negative >> 26)


@triton.jit
def load_rank_words(words, block, stride, rank, n, inside):
    """U's words [8, N] of any 128 ranks, as far as they are there.  Loops that are pipelined take the two apart."""
    if (block + 1) * 128 <= rank:
        word = load_words(words, block, stride, n, inside)
    else:
        word = load_last_ranks(words, stride, rank, n, inside)
    return word


@triton.jit
def rank_order(k):
    """Where rank k is when U's words are decoded, and which rank is there: `layout.rank_order`."""
    return (k & -127) | ((k & 14) << 3) | ((k & 112) >> 3)


@triton.jit
def find_task(table, tasks, slot):
    """(v words, u words, scalars, rank) of a slot; rank 0 where the slot is -1, empty or unknown.

    Offsets from the bank's anchor into any of its chunks, negative ones too; 0 without a task, where the anchor has
    zeros for numbers.
    """
    known = (slot >= 0) & (slot < tasks)
    row = table + slot.to(tl.int64) * FIELDS
    v = tl.load(row, mask=known, other=0)
    u = tl.load(row + 1, mask=known, other=0)
    scalars = tl.load(row + 2, mask=known, other=0)
    rank = tl.load(row + 3, mask=known, other=0).to(tl.int32)
    return tl.multiple_of(v, 8), tl.multiple_of(u, 8), tl.multiple_of(scalars, 8), rank


@triton.jit
def select_rows(
    slots, block, entries, per_entry, places, BLOCK_T: tl.constexpr, GROUPED: tl.constexpr, ENTRIES: tl.constexpr
):
    """(rows [BLOCK_T] int64, which of them are real, their common entry) of a program.

    GROUPED (one row an entry, one place): rows of one task run together wherever they are in the batch.  The
    first, 17th, ... row of a task gathers the next BLOCK_T rows of that task; programs of other rows have nothing
    to do.  Nothing is sorted, counted on the host or added atomically, and a row's sum does not depend on the rest.
    Otherwise a program takes BLOCK_T consecutive rows of one entry.
    """
    j = tl.arange(0, BLOCK_T)
    if GROUPED:
        e = tl.arange(0, ENTRIES)
        same = (tl.load(slots + e, mask=e < entries, other=-1) == tl.load(slots + block)) & (e < entries)
        position = tl.cumsum(same.to(tl.int32), 0) - 1
        ahead = tl.sum((same & (e < block)).to(tl.int32), 0)
        chosen = (same & (ahead % BLOCK_T == 0))[None, :] & (position[None, :] == (ahead + j)[:, None])
        rows = tl.sum(tl.where(chosen, e[None, :], 0), 1).to(tl.int64)
        return rows, tl.sum(chosen.to(tl.int32), 1) > 0, block
    blocks = tl.cdiv(per_entry, BLOCK_T)
    entry = block // blocks
    inside = block % blocks * BLOCK_T + j
    return entry.to(tl.int64) * per_entry + inside, inside < per_entry, entry
