"""Kept rows and columns on disk, in the smaller of two forms; what is none is refused."""

import pytest
import torch

from dts.codec import Undecodable, index_from_disk, index_to_disk
from dts.codec.index import checked_index


@pytest.mark.parametrize("size", [1, 8, 9, 1000])
@pytest.mark.parametrize("share", [0.001, 0.02, 0.5, 1.0])
def test_indices_survive_the_disk_in_the_smaller_form(size, share):
    kept = (torch.rand(size, generator=torch.Generator().manual_seed(size)) < share).nonzero()[:, 0]
    stored = index_to_disk(kept, size)
    assert torch.equal(index_from_disk(stored), kept)
    assert stored.nbytes == min(4 * len(kept), (size + 7) // 8)


@pytest.mark.parametrize(
    ("stored", "size"),
    [
        (torch.tensor([3], dtype=torch.uint8), 9),  # a byte short
        (torch.tensor([0], dtype=torch.uint8), 8),  # nothing kept
        (torch.tensor([1, 2], dtype=torch.uint8), 9),  # a bit beyond the last
        (torch.tensor([1, 2]), 9),  # int64
        (torch.tensor([[1, 2]], dtype=torch.int32), 9),
        (torch.tensor([], dtype=torch.int32), 9),
        (torch.tensor([2, 1], dtype=torch.int32), 9),
        (torch.tensor([1, 1], dtype=torch.int32), 9),
        (torch.tensor([-1, 1], dtype=torch.int32), 9),
        (torch.tensor([1, 9], dtype=torch.int32), 9),
    ],
)
def test_what_is_no_index_is_refused_by_name(stored, size):
    with pytest.raises(Undecodable, match="a.rows: "):
        checked_index("a.rows", stored, size)


def test_nothing_stored_is_all_of_them():
    assert checked_index("a.rows", None, 9) is None
    assert checked_index("a.rows", torch.tensor([1, 8], dtype=torch.int32), 9).tolist() == [1, 8]
