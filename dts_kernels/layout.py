"""The only place that knows where a code's bits are: codes <-> disk bytes <-> kernel words.

A *code* is 2 bits: bit 1 = negative, bit 0 = large.  Without levels the four codes mean

    code      0    1    2    3
    value    +1   +4   -1   -4          (``VALUES``; the scale lives in sigma)

and with ``levels`` (method "paper") ``levels[0, code]`` for U and ``levels[1, code]`` for V.

Disk bytes: the rank axis is packed, four ranks a byte, rank 4j+i in bits 2i and 2i+1 of byte j:

    bit     7 6   5 4   3 2   1 0
    rank   4j+3  4j+2  4j+1  4j+0         pad ranks of the last byte are code 0

Both factors are packed along the rank axis, so a slice of rows (a tensor-parallel shard, one of a
fused q/k/v) and a prefix of the ranks are plain slices of the bytes.

Kernel words: int32, the contraction axis packed, 16 codes a word: those of planes i = 0..7 and halves h = 0, 1.

    V [ceil(n/128), k, 8]         word (b, rank, p): rows of v at 128 b + 16 i + 2 p + h
    U [ceil(k/16), 16 ceil(m/16)] word (8 b + p, row): ranks 128 b + 16 p + 2 i + h; in memory as
                                  `rank_words_in_memory` has it

    negative at bit (15 + 2 i + 16 h) mod 32,   large at bit (8 + 2 i + 16 h) mod 32

    bit   31   30..25   24   23..16   15   14..9   8   7..0        the word turned right by 2 i
           N            L              N            L              N negative, L large
          |------ h = 1 ------------|  |------ h = 0 ------|

Turned right by 2 i, one AND and one OR leave two bf16 numbers of {-1, -1/4, 1/4, 1}, the codes' values
times 1/4, in one register: k and k + 1, exactly what a tensor-core operand holds in one register, so no
code ever moves between threads.  fp16 has its exponent three bits higher; the kernels move a word's large
bits there once, for all its 16 codes.  U contracts over the rank, V over in_features; padding is code 0.
A product wants eight words of a column, p = 0..7, side by side in memory, for 128 numbers of its contraction.  V
contracts over in_features, of which there are many; of ranks there are few, so the last ones of U have a row of words
for 16 of them, or of half words for 8, and no more than they need.  The ranks of 128
come out of a decode in `rank_order`.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

VALUES = (1.0, 4.0, -1.0, -4.0)
WORD_BLOCK = 128  # codes of the contraction axis that the 8 words of a column hold
WORD_CODES = 16
COLUMN_BLOCK = 16  # U's columns are padded to a multiple of this, so that every row of words starts at 64 bytes
VALUES_RMS = 2.5  # of a factor whose codes are rounded from a normal distribution, near enough for ranges


def ceil_div(size: int, block: int) -> int:
    """Blocks that hold ``size``."""
    return -(-size // block)


def round_up(size: int, block: int) -> int:
    """The next multiple of ``block``."""
    return ceil_div(size, block) * block


def packed_width(rank: int) -> int:
    """Bytes of one row of a factor of ``rank`` components."""
    return ceil_div(rank, 4)


def pack(codes: Tensor) -> Tensor:
    """Codes to disk bytes.

    codes: uint8 [rows, rank], each 0..3.  Returns uint8 [rows, ceil(rank / 4)].
    """
    if codes.dtype != torch.uint8 or codes.dim() != 2:
        raise TypeError(f"codes must be uint8 [rows, rank], not {codes.dtype} {list(codes.shape)}")
    rows, rank = codes.shape
    width = packed_width(rank)
    padded = torch.nn.functional.pad(codes, (0, 4 * width - rank)).view(rows, width, 4)
    return padded[..., 0] | padded[..., 1] << 2 | padded[..., 2] << 4 | padded[..., 3] << 6


def unpack(packed: Tensor, rank: int) -> Tensor:
    """Disk bytes to codes, the inverse of `pack`.

    packed: uint8 [rows, ceil(rank / 4)].  Returns uint8 [rows, rank].
    """
    if packed.dtype != torch.uint8 or packed.dim() != 2 or packed.shape[1] != packed_width(rank):
        raise TypeError(
            f"packed must be uint8 [rows, {packed_width(rank)}] for rank {rank}, "
            f"not {packed.dtype} {list(packed.shape)}"
        )
    codes = torch.stack([packed >> shift & 3 for shift in (0, 2, 4, 6)], dim=-1)
    return codes.flatten(1)[:, :rank]


@dataclass(frozen=True, slots=True)
class PackedFactors:
    """One low-rank product  sum_k sigma_k u_k v_k^T  of shape [m, n], in disk bytes.

    u: uint8 [m, ceil(k/4)];  v: uint8 [n, ceil(k/4)];  sigma: float32 [k];
    levels: float32 [2, 4] (values of codes 0..3 for U and V) or None for ``VALUES`` on both sides.
    """

    u: Tensor
    v: Tensor
    sigma: Tensor
    levels: Tensor | None = None

    def __post_init__(self):
        rank = self.sigma.shape[0] if self.sigma.dim() == 1 else -1
        wrong = []
        if self.sigma.dtype != torch.float32 or rank < 0:
            wrong.append(f"sigma must be float32 [rank], not {self.sigma.dtype} {list(self.sigma.shape)}")
        for name, factor in (("u", self.u), ("v", self.v)):
            if factor.dtype != torch.uint8 or factor.dim() != 2 or rank >= 0 and factor.shape[1] != packed_width(rank):
                wrong.append(
                    f"{name} must be uint8 [rows, {packed_width(max(rank, 0))}], "
                    f"not {factor.dtype} {list(factor.shape)}"
                )
        if self.levels is not None and (self.levels.dtype != torch.float32 or tuple(self.levels.shape) != (2, 4)):
            wrong.append(f"levels must be float32 [2, 4], not {self.levels.dtype} {list(self.levels.shape)}")
        if wrong:
            raise ValueError("factors do not fit together: " + "; ".join(wrong))

    def __reduce__(self):
        """Without what else is in the memory that its tensors share: pickle would write all of it for each of them."""
        return PackedFactors, tuple(None if t is None else alone(t) for t in (self.u, self.v, self.sigma, self.levels))

    @property
    def rank(self) -> int:
        return self.sigma.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        """(m, n) = (out_features, in_features) of the product."""
        return self.u.shape[0], self.v.shape[0]

    @property
    def tensors(self) -> list[Tensor]:
        tensors = [self.u, self.v, self.sigma]
        return tensors if self.levels is None else [*tensors, self.levels]

    @property
    def scales(self) -> list[float]:
        """sigma's numbers."""
        found: list[float] = self.sigma.tolist()
        return found

    @property
    def nbytes(self) -> int:
        """Bytes of all its tensors, without any file header."""
        return sum(t.numel() * t.element_size() for t in self.tensors)

    def transpose(self) -> "PackedFactors":
        """Factors of the transposed product [n, m] (layers that store their weight as [in, out])."""
        return PackedFactors(self.v, self.u, self.sigma, None if self.levels is None else self.levels.flip(0))

    def prefix(self, rank: int) -> "PackedFactors":
        """The first ``rank`` components; sigma as stored, not rescaled."""
        rank, width = min(rank, self.rank), packed_width(min(rank, self.rank))
        return PackedFactors(self.u[:, :width], self.v[:, :width], self.sigma[:rank], self.levels)

    def rows(self, start: int, stop: int) -> "PackedFactors":
        """Factors of rows start..stop of the product (a fused projection's part, a shard)."""
        return PackedFactors(self.u[start:stop], self.v, self.sigma, self.levels)

    def to(self, device) -> "PackedFactors":
        """Itself where it is there already: a bank's tasks are put in one after the other."""
        if all([t.device == device for t in self.tensors]):
            return self
        levels = None if self.levels is None else self.levels.to(device)
        return PackedFactors(self.u.to(device), self.v.to(device), self.sigma.to(device), levels)


def alone(tensor: Tensor) -> Tensor:
    """The tensor without what else is in its memory."""
    return tensor.clone() if tensor.untyped_storage().nbytes() > tensor.nbytes else tensor


def words_shape(contracted: int, columns: int) -> tuple[int, int, int]:
    """Shape of V's words, of a [contracted, columns] matrix of codes."""
    return ceil_div(contracted, WORD_BLOCK), columns, 8


def rank_words_shape(rank: int, columns: int) -> tuple[int, int]:
    """Shape of U's words, of [rank, columns] codes."""
    return ceil_div(rank, WORD_CODES), round_up(columns, COLUMN_BLOCK)


def rank_order(size: int) -> Tensor:
    """int64 [size], a multiple of 128: which rank is where when U's words are decoded, and where a rank is: in every
    128, 16 p + 2 i + h and 16 i + 2 p + h change places."""
    return torch.arange(size).view(size // WORD_BLOCK, 8, 8, 2).transpose(1, 2).reshape(-1)


def _bit_positions(device) -> tuple[Tensor, Tensor]:
    """(negative, large) bit of the code of plane i and half h: int64 [8, 1, 2] each."""
    plane, half = torch.arange(8, device=device).view(8, 1, 1), torch.arange(2, device=device).view(1, 1, 2)
    return (15 + 2 * plane + 16 * half) % 32, (8 + 2 * plane + 16 * half) % 32


def codes_to_words(codes: Tensor) -> Tensor:
    """uint8 codes [K, N], K the contraction axis, to int32 kernel words [ceil(K/128), N, 8]: by their definition."""
    contracted, columns = codes.shape
    blocks = ceil_div(contracted, WORD_BLOCK)
    padded = torch.nn.functional.pad(codes, (0, 0, 0, WORD_BLOCK * blocks - contracted))
    planes = padded.view(blocks, 8, 8, 2, columns).permute(0, 4, 1, 2, 3).to(torch.int64)  # [b, n, i, p, h]
    negative, large = _bit_positions(codes.device)
    words = ((planes >> 1) << negative | (planes & 1) << large).sum((2, 4))  # every code has its own bits
    return torch.where(words >= 2**31, words - 2**32, words).to(torch.int32)


def words_to_codes(words: Tensor, contracted: int, columns: int) -> Tensor:
    """Kernel words to uint8 codes [contracted, columns], the inverse of `codes_to_words`."""
    if words.dtype != torch.int32 or tuple(words.shape) != words_shape(contracted, columns):
        raise TypeError(
            f"words of [{contracted}, {columns}] codes must be int32 {list(words_shape(contracted, columns))}, "
            f"not {words.dtype} {list(words.shape)}"
        )
    blocks, width, _ = words.shape
    wide = words.view(blocks, width, 1, 8, 1).to(torch.int64)
    negative, large = _bit_positions(words.device)
    codes = ((wide >> negative & 1) << 1 | wide >> large & 1).to(torch.uint8)  # [b, n, i, p, h]
    return codes.permute(0, 2, 3, 4, 1).reshape(WORD_BLOCK * blocks, width)[:contracted, :columns].contiguous()


def codes_to_rank_words(codes: Tensor) -> Tensor:
    """uint8 codes [rank, N] to U's words [ceil(rank/16), 16 ceil(N/16)]: by their definition."""
    rank, columns = codes.shape
    rows, width = rank_words_shape(rank, columns)
    padded = torch.nn.functional.pad(codes, (0, width - columns, 0, round_up(rank, WORD_BLOCK) - rank))
    words = codes_to_words(padded[rank_order(padded.shape[0]).to(codes.device)])
    return words.transpose(1, 2).reshape(8 * words.shape[0], width)[:rows]


def rank_words_to_codes(words: Tensor, rank: int, columns: int) -> Tensor:
    """U's words to uint8 codes [rank, columns], the inverse of `codes_to_rank_words`."""
    if words.dtype != torch.int32 or tuple(words.shape) != rank_words_shape(rank, columns):
        raise TypeError(
            f"words of {rank} ranks of {columns} rows must be int32 {list(rank_words_shape(rank, columns))}, "
            f"not {words.dtype} {list(words.shape)}"
        )
    rows, width = words.shape
    padded = torch.nn.functional.pad(words, (0, 0, 0, round_up(rows, 8) - rows))
    blocks = ceil_div(rows, 8)
    padded, size = padded.view(blocks, 8, width), WORD_BLOCK * blocks
    codes = words_to_codes(padded.transpose(1, 2).contiguous(), size, width)
    return codes[rank_order(size).to(codes.device)][:rank, :columns].contiguous()


def rank_words_size(rank: int, columns: int) -> int:
    """int32 of `rank_words_in_memory`."""
    rows, half = _whole_rows(rank)
    return round_up(columns, COLUMN_BLOCK) * rows + round_up(columns, COLUMN_BLOCK) // 2 * half


def _whole_rows(rank: int) -> tuple[int, bool]:
    """(rows of whole words, whether there is one of half words, of the last 1 to 8 ranks)."""
    return (rank + 7) // WORD_CODES, 0 < rank % WORD_CODES <= WORD_CODES // 2


def rank_words_in_memory(words: Tensor, rank: int) -> Tensor:
    """U's words [ceil(rank/16), N] as kernels read them, flat: [N, 8] for every whole 128 ranks, then the last rows.

    1 to 8 ranks in the last row have half a word each column: bits 8 to 15 and 24 to 31 of the large bits (even ones)
    and, turned right by 6, the negative bits (odd ones).
    """
    blocks, (rows, half) = rank // WORD_BLOCK, _whole_rows(rank)
    whole = words[: 8 * blocks].unflatten(0, (blocks, 8)).transpose(1, 2)
    parts = [whole.flatten(), words[8 * blocks : rows].flatten()]
    if half:
        row = words[rows]
        both = row & 0x55005500 | (row >> 6 & 0x03FFFFFF | row << 26) & ~0x55FF55FF
        parts.append((both >> 8 & 0xFF | both >> 16 & 0xFF00).to(torch.int16).contiguous().view(torch.int32))
    return torch.cat(parts)


def rank_words_of_memory(flat: Tensor, rank: int, columns: int) -> Tensor:
    """The inverse of `rank_words_in_memory`."""
    width, blocks, (rows, half) = round_up(columns, COLUMN_BLOCK), rank // WORD_BLOCK, _whole_rows(rank)
    whole = flat[: 8 * blocks * width].view(blocks, width, 8).transpose(1, 2).reshape(8 * blocks, width)
    parts = [whole, flat[8 * blocks * width : rows * width].view(rows - 8 * blocks, width)]
    if half:
        halves = flat[rows * width :].contiguous().view(torch.int16).to(torch.int32)
        both = (halves & 0xFF) << 8 | (halves & 0xFF00) << 16
        negative = both & ~0x55FF55FF
        parts.append((both & 0x55005500 | negative << 6 | negative >> 26 & 0x3F)[None])
    return torch.cat(parts)


@dataclass(frozen=True)
class KernelFactors:
    """`PackedFactors` in kernel words: derived at load, never stored on disk.

    u: int32 [ceil(k/16), 16 ceil(m/16)];  v: int32 [ceil(n/128), k, 8];
    sigma: float32 [k];  levels: float32 [2, 4] or None;  shape: (m, n).
    """

    u: Tensor
    v: Tensor
    sigma: Tensor
    levels: Tensor | None
    shape: tuple[int, int]

    @property
    def rank(self) -> int:
        return self.sigma.shape[0]

    @property
    def nbytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in (self.u, self.v, self.sigma, self.levels) if t is not None)


def to_kernel_layout(factors: PackedFactors) -> KernelFactors:
    """Disk bytes to kernel words, on the factors' device, 4 codes or more at a time."""
    u, v = _rank_words(factors.u, factors.rank), _words(factors.v, factors.rank)
    return KernelFactors(u, v, factors.sigma, factors.levels, factors.shape)


def _words(packed: Tensor, rank: int) -> Tensor:
    """Disk bytes [n, ceil(rank / 4)] to what `codes_to_words` makes of their codes."""
    rows, width = packed.shape
    blocks = ceil_div(rows, WORD_BLOCK)
    if not blocks * width:
        return torch.zeros(words_shape(rows, rank), dtype=torch.int32, device=packed.device)
    padded = torch.nn.functional.pad(packed, (0, 0, 0, WORD_BLOCK * blocks - rows))
    # [b, j, p, h, i]: the bytes of a word's 16 rows together, four ranks 4 j + c each
    fours = padded.view(blocks, 8, 8, 2, width).permute(0, 4, 2, 3, 1).contiguous().view(torch.int32)
    fours = _exchange(_exchange(fours, 0x00CC00CC, 6), 0x0000F0F0, 12)  # four rows of four codes, transposed
    ranks = fours.contiguous().view(torch.uint8).view(blocks, width, 8, 4, 4).permute(0, 1, 4, 2, 3)
    return _planes(ranks.contiguous().view(torch.int32).view(blocks, 4 * width, 8)[:, :rank])


def _rank_words(packed: Tensor, rank: int) -> Tensor:
    """Disk bytes [m, ceil(rank / 4)] to what `codes_to_rank_words` makes of their codes: a word is four bytes' bits."""
    rows, width = rank_words_shape(rank, packed.shape[0])
    if not rows * width:
        return torch.zeros(rows, width, dtype=torch.int32, device=packed.device)
    padded = torch.nn.functional.pad(packed, (0, 4 * rows - packed.shape[1], 0, width - packed.shape[0]))
    words = padded.contiguous().view(torch.int32)  # [m, rows], code 2 i + h in bits 4 i + 2 h on
    for mask, shift in ((0x0C0C0C0C, 2), (0x00F000F0, 4), (0x0000FF00, 8)):  # h from the last to the first digit
        words = _exchange(words, mask, shift)
    return _planes(words).t()


def _exchange(words: Tensor, mask: int, shift: int) -> Tensor:
    """int32 words, the bits of ``mask`` and those ``shift`` above them exchanged."""
    changed = (words ^ (words >> shift)) & mask
    return words ^ changed ^ (changed << shift)


def _planes(codes: Tensor) -> Tensor:
    """int32 words with code (i, h) in bits 2 i + 16 h and the one above to words as kernels take them."""
    large, negative = codes & 0x55555555, codes & ~0x55555555
    return (large << 8) | (large >> 24) | (negative << 14) | ((negative >> 18) & 0x3FFF)


def from_kernel_layout(factors: KernelFactors) -> PackedFactors:
    """Kernel words to disk bytes, the exact inverse of `to_kernel_layout`."""
    (m, n), rank = factors.shape, factors.rank
    u, v = rank_words_to_codes(factors.u, rank, m).T, words_to_codes(factors.v, n, rank)
    return PackedFactors(pack(u.contiguous()), pack(v), factors.sigma, factors.levels)


def level_coefficients(levels: Tensor | None) -> list[float]:
    """(f, g, b, one) with  value(code) = f F + g G + b B + one  for codes 0..3 (exact in float64).

    The three decodes kernels make without arithmetic, s the sign: F = s/4 or s (large), G = s or s/4 (large),
    B = |F|.  Without levels F alone does it: (4, 0, 0, 0).
    """
    plus_small, plus_large, minus_small, minus_large = VALUES if levels is None else levels.double().tolist()
    odd_small, odd_large = (plus_small - minus_small) / 2, (plus_large - minus_large) / 2
    even_small, even_large = (plus_small + minus_small) / 2, (plus_large + minus_large) / 2
    b = (even_large - even_small) / 0.75
    return [(odd_large - odd_small / 4) / 0.9375, (odd_small - odd_large / 4) / 0.9375, b, even_small - b / 4]
