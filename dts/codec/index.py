"""Which rows or columns of a matrix are not zero: in memory, int64 indices in ascending order; on disk in two forms."""

import torch
from torch import Tensor

from .errors import Undecodable


def index_to_disk(kept: Tensor, size: int) -> Tensor:
    """Kept indices (int64, ascending, below ``size``) in the smaller of two forms.

    int32 [count], the indices; or uint8 [ceil(size / 8)], a bit an index, index 8j+i in bit i of byte j.
    """
    if 4 * len(kept) < (size + 7) // 8:
        return kept.int()
    mask = torch.zeros((size + 7) // 8 * 8, dtype=torch.uint8)
    mask[kept] = 1
    return (mask.view(-1, 8) << torch.arange(8, dtype=torch.uint8)).sum(1, dtype=torch.uint8)


def index_from_disk(stored: Tensor) -> Tensor:
    """The inverse of `index_to_disk`: int64, ascending."""
    if stored.dtype == torch.uint8:
        return (stored[:, None] >> torch.arange(8, dtype=torch.uint8) & 1).flatten().nonzero()[:, 0]
    return stored.long()


def checked_index(name: str, stored: Tensor | None, size: int) -> Tensor | None:
    """`index_from_disk` of what comes from a file; None (all of them) where nothing is stored.

    Raises Undecodable unless it is some of ``size`` rows or columns, in order.  name: of the tensor, for messages.
    """
    if stored is None:
        return None
    if stored.dtype == torch.uint8:
        if tuple(stored.shape) != ((size + 7) // 8,) or not stored.any() or size % 8 and stored[-1] >> size % 8:
            raise Undecodable(f"{name}: {list(stored.shape)} bytes are no mask of {size}")
        return index_from_disk(stored)
    if stored.dtype != torch.int32 or stored.dim() != 1 or not len(stored):
        raise Undecodable(f"{name}: {str(stored.dtype).removeprefix('torch.')} {list(stored.shape)} are no indices")
    kept = index_from_disk(stored)
    if kept[0] < 0 or kept[-1] >= size or (kept.diff() <= 0).any():
        raise Undecodable(f"{name}: indices are not ascending within {size}")
    return kept
