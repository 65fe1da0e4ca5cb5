"""Device functions of sampled elements (`dts_kernels.samples`), which lie as `dts_kernels.sample_words` says.

Arena: the words of all samples in one tensor, and of every sample a row of table (`dts_kernels.sample_table`), whose
FIELDS kernels are compiled for: only those of a table with shares know thinned samples.
"""

import triton
import triton.language as tl

PLAIN = tl.constexpr(4)  # fields of a table without shares, as in sample_table.py
RUN = tl.constexpr(8)  # rows of a word, as in sample_words.py
WINDOW = tl.constexpr(64)  # as in samples.py of dts_kernels
LARGEST_LAID = tl.constexpr(512)  # strides up to here; the room for it is a function of this, not of the samples
TWO_BLOCKS = tl.constexpr(7)  # strides from here on: a run of eight rows meets at most two blocks


@triton.jit
def find_samples(starts, slots_known, slot):
    """(first, end) of a slot's rows of the table; nothing where the slot is -1 or unknown."""
    known = (slot >= 0) & (slot < slots_known)
    at = starts + slot.to(tl.int64)
    return (tl.load(at, mask=known, other=0).to(tl.int32), tl.load(at + 1, mask=known, other=0).to(tl.int32))


@triton.jit
def load_sample(table, k, FIELDS: tl.constexpr):
    """(offset of the words, stride, seed) of row k."""
    row = table + k * FIELDS
    return tl.multiple_of(tl.load(row + 1), 2), tl.load(row + 2).to(tl.int32), tl.load(row + 3).to(tl.uint32)


@triton.jit
def load_share(table, k, FIELDS: tl.constexpr):
    """(groups that are kept, of a window of how many) of row k of a table with shares."""
    number = tl.load(table + k * FIELDS + PLAIN).to(tl.int32)
    return 1 + 2 * (number & 1), 1 << (number >> 1)


@triton.jit
def hash_of_block(seed, block):
    """A block of rows' share of what `shift_of` mixes, to which `hash_of_group` is added."""
    return seed + block.to(tl.uint32) * 0x9E3779B1


@triton.jit
def hash_of_group(group):
    return group.to(tl.uint32) * 0x85EBCA77


@triton.jit
def shift_of(h, stride):
    """How far the diagonal of a block of rows and a group of columns is turned: `dts_kernels.samples`, 32 bits."""
    h = h ^ (h >> 16)
    h = h * 0x85EBCA6B
    h = h ^ (h >> 13)
    h = h * 0xC2B2AE35  # its upper half is that of h ^ h >> 16
    return (((h >> 16) * stride.to(tl.uint32)) >> 16).to(tl.int32)


@triton.jit
def elements_of(columns, stride, kept, window):
    """Elements of a row."""
    return kept * tl.cdiv(tl.cdiv(columns, stride), window)


@triton.jit
def _turn_of(h, first):
    """How the groups of a window that begins with group ``first`` are turned in a block of rows; h: of the block."""
    return shift_of(h + hash_of_group(-1 - first // WINDOW), tl.full((), WINDOW, tl.int32))


@triton.jit
def group_of(h, element, kept, window):
    """The group of an element of a thinned sample, in the rows of a block; h: of the block."""
    whole = element // kept
    first = whole * window
    return first + (((window >> (element - whole * kept)) ^ _turn_of(h, first)) & (window - 1))


@triton.jit
def element_of(h, group, kept, window):
    """(the element of a group, whether it has one), of a thinned sample, in the rows of a block."""
    whole = group // window
    first = whole * window
    apart = ((group - first) ^ _turn_of(h, first)) & (window - 1)
    second = apart == tl.where(kept == 3, window >> 1, -1)
    third = apart == tl.where(kept == 3, window >> 2, -1)
    return whole * kept + tl.where(second, 1, tl.where(third, 2, 0)), (apart == 0) | second | third


@triton.jit
def wrap(at, stride):
    """at mod stride, of what is below twice the stride, uint32: the smaller of two numbers without a sign."""
    at = at.to(tl.uint32)
    return tl.minimum(at, at - stride.to(tl.uint32))


@triton.jit
def quarter(word, q: tl.constexpr):
    """A quarter of the value of code q of a word."""
    turned = ((word >> (2 * q)) | (word << (32 - 2 * q))) if q > 0 else word
    return ((turned & 0x81000000) | 0x3E800000).to(tl.float32, bitcast=True)


@triton.jit
def is_laid(stride, BLOCK_T: tl.constexpr):
    """Whether `lay` makes anything of a sample's x."""
    smallest: tl.constexpr = TWO_BLOCKS if BLOCK_T == 1 else 1
    return (stride >= smallest) & (stride <= LARGEST_LAID)


@triton.jit
def pitch_of(stride):
    """Columns that a group has in what `lay` makes."""
    return stride + tl.where(stride >= TWO_BLOCKS, RUN - 1, 0)
