"""What tests of all devices share."""

import pytest
import torch

from dts_kernels.arena import pieces


@pytest.fixture
def in_one_piece():
    """(packed, table) of a bank -> the same in tensors of their own, which may be copied: `opcheck` does, and a copy of
    a bank's anchor stands for none of its chunks."""

    def make(packed, table):
        if table.shape[1] == 6:
            return packed, table
        found = list(pieces(packed[0]))
        words = torch.cat([piece for _, piece in found])
        rows = [[*(_moved(found, offset) for offset in row[:3]), row[3]] if row[3] else row for row in table.tolist()]
        return [words, words.view(torch.float32).clone()], torch.tensor(rows)

    return make


def _moved(found, offset: int) -> int:
    before = 0
    for first, piece in found:
        if first <= offset < first + piece.numel():
            return before + offset - first
        before += piece.numel()
    raise AssertionError(f"{offset} is in no piece")
