"""Matrices in batches of one shape, as a device takes them (`dts.codec.many`).

Which matrices are in a batch can change the last bits of what is made of them: so batches follow from the plan and the
device alone, not from what is free or finished at the moment.
"""

from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from dts.checkpoint import Pair, Pairing
from dts.codec.alternations import affordable
from dts.shapes import is_stack

MOST = 16  # matrices of a batch: more of them are no faster, and the first one waits for all to be read
SHARE = 16  # of a device's memory one part in so many is a batch's
ROOM = 1 << 28  # bytes of a batch where the device's memory is not known
NEAR, STEP = 0.8, 16  # ranks of a batch are at least so much of its largest, or so near to it


@dataclass(frozen=True)
class Piece:
    """One matrix of a tensor.  which: of a stack, else 0;  rank: asked of it."""

    pair: Pair
    which: int
    shape: tuple[int, int]
    rank: int

    def of(self, tensor: Tensor, base_shape: tuple[int, ...]) -> Tensor:
        """Its part [m, n] of the base's tensor, or of the fine-tune's, which may have more rows."""
        shared = tensor[: base_shape[0]]
        return shared[self.which] if is_stack(self.pair.name, base_shape) else shared.flatten(1)


def pieces(pairing: Pairing, pair: Pair, ranks: list[int] | int) -> list[Piece]:
    """The matrices of a tensor that the base has; ranks: of each, or one of all."""
    if pair.base_name is None:
        raise ValueError(f"{pair.name} has no difference: the base lacks it")
    shape = pairing.base.shape(pair.base_name)
    stack = is_stack(pair.name, shape)
    count, m, n = shape if stack else (1, shape[0], torch.Size(shape[1:]).numel())
    ranks = [ranks] * count if isinstance(ranks, int) else ranks
    return [Piece(pair, i, (m, n), rank) for i, rank in enumerate(ranks)]


def room_of(device: torch.device) -> int:
    """Bytes of a batch."""
    return torch.cuda.get_device_properties(device).total_memory // SHARE if device.type == "cuda" else ROOM


def bytes_of(shape: tuple[int, int], rank: int) -> int:
    """Bytes of a device that one matrix takes at most while it is encoded, nearly: with the next one that is read."""
    m, n = shape
    width = min(rank, m, n)
    return 16 * m * n + 40 * (m + n) * width + 64 * width * width


def batches(given: list[Piece], room: int) -> list[list[Piece]]:
    """All pieces, those of one shape and number of alternations together, the largest ranks first."""
    order = sorted(given, key=lambda piece: (_kind(piece), -piece.rank))  # stable: else in the plan's order
    made = []
    for _, alike in groupby(order, key=_kind):
        batch: list[Piece] = []
        for piece in alike:
            if batch:
                largest = batch[0]
                full = (len(batch) + 1) * bytes_of(piece.shape, largest.rank) > room or len(batch) == MOST
                if full or piece.rank < min(NEAR * largest.rank, largest.rank - STEP):
                    made.append(batch)
                    batch = []
            batch.append(piece)
        made.append(batch)
    return made


def _kind(piece: Piece) -> tuple[tuple[int, int], int]:
    return piece.shape, affordable(*piece.shape, max(1, piece.rank))
