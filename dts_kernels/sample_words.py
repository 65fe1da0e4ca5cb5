"""Sampled elements as the GPU kernels read them: words of 16 codes, eight rows of two groups of columns.

    words: int32 [ceil(groups / 4), ceil(m / 8), 2]; word (k, i, j) holds rows 8 i .. 8 i + 7 of groups 4 k + 2 j and
    4 k + 2 j + 1

A thread takes eight rows that lie together: of a block of rows their elements are one turned run of a group's columns,
so what turns it, and a hash is needed for the run and not for an element.  Threads beside each other read words beside
each other.  Disk bytes hold four groups, too, so words take no more room than they do but for rows up to a multiple of
eight.

A word turned right by `turn(row, group)` has the code's sign in bit 31 and its size in bit 24 (so signs are its odd
bits and sizes its even ones): with one AND and one OR it is a float32 of a quarter of the code's value.
"""

from functools import cache

import torch
from torch import Tensor

from .layout import ceil_div

RUN = 8  # rows of a word


def turn(row: int, group: int) -> int:
    """Bits that a word is turned right by for the code of a row and group."""
    return 2 * (row % RUN + RUN * (group % 2))


def words_of(rows: int, width: int) -> int:
    """Words of disk bytes [rows, width]."""
    return 2 * ceil_div(rows, RUN) * width


@cache
def _spread(device: torch.device) -> Tensor:
    """int32 [8 rows, 256, 2]: the bits of both words that a byte of four codes makes in a row."""
    made = torch.zeros(RUN, 256, 2, dtype=torch.int64)
    byte = torch.arange(256)
    for row in range(RUN):
        for group in range(4):
            code = byte >> 2 * group & 3
            for bit, at in ((code & 1, 24), (code >> 1, 31)):
                made[row, :, group // 2] |= bit << (at + turn(row, group)) % 32
    return made.to(torch.int32).to(device)


def to_words(codes: Tensor) -> Tensor:
    """Disk bytes uint8 [m, width] to words int32 [width, ceil(m / 8), 2]."""
    rows, width = codes.shape
    runs = ceil_div(rows, RUN)
    of_run = torch.nn.functional.pad(codes, (0, 0, 0, runs * RUN - rows)).view(runs, RUN, width)
    spread, words = _spread(codes.device), codes.new_zeros(width * runs, 2, dtype=torch.int32)
    for row in range(RUN):
        words |= spread[row].index_select(0, of_run[:, row].T.flatten().int())
    return words.view(width, runs, 2)


def from_words(words: Tensor, rows: int, width: int) -> Tensor:
    """The inverse of `to_words`; words: int32, `words_of` of them in any shape."""
    runs = ceil_div(rows, RUN)
    words = words.reshape(width, runs, 2)
    codes = words.new_zeros(runs, RUN, width, dtype=torch.uint8)
    for row in range(RUN):
        for group in range(4):
            size, sign = ((words[..., group // 2] >> (at + turn(row, group)) % 32) & 1 for at in (24, 31))
            codes[:, row] |= ((size | sign << 1) << 2 * group).to(torch.uint8).T
    return codes.view(runs * RUN, width)[:rows].contiguous()
