"""The table of a bank of samples: int64, a row a sample.

    slot, where its words begin in an arena (else 0), stride, seed, and only where one of the bank's samples is thinned
    its share (c, w) as 2 log2(w) + (c == 3)

So banks without thinned samples, and the kernels that are compiled for those, know nothing of shares.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .samples import SHARES, STRIDES, Samples

PLAIN, SHARED = 4, 5  # fields of a row
NUMBERS = {(kept, window): 2 * (window.bit_length() - 1) + (kept == 3) for kept, window in SHARES}
BY_NUMBER = {number: share for share, number in NUMBERS.items()}


class Row(NamedTuple):
    slot: int
    offset: int
    stride: int
    seed: int
    share: tuple[int, int]


def fields_of(samples: Iterable[Samples]) -> int:
    """Fields that a table of these needs."""
    return SHARED if any(one.is_thinned for one in samples) else PLAIN


def row_of(slot: int, offset: int, sample: Samples, fields: int) -> list[int]:
    """Raises ValueError for a thinned sample and PLAIN fields."""
    if fields < fields_of([sample]):
        raise ValueError(f"a table of {fields} fields has no thinned samples, and one is of a share {sample.share}")
    return [slot, offset, sample.stride, sample.seed, NUMBERS[sample.share]][:fields]


def read(row: Sequence[int]) -> Row:
    """Raises ValueError naming all that is out of range."""
    slot, offset, stride, seed, *more = row
    share = BY_NUMBER.get(more[0] if more else 0)
    wrong = [] if stride in STRIDES else [f"stride {stride}"]
    if not 0 <= seed < 1 << 32:
        wrong.append(f"seed {seed}")
    if share is None:
        wrong.append(f"{more[0]} for its share")
    if slot < 0 or wrong or share is None:
        raise ValueError(f"a sample in slot {slot} has {', '.join(wrong) or 'no place'}")
    return Row(slot, offset, stride, seed, share)


class Tables(NamedTuple):
    """Of an arena, where they stay.

    table: int64 [room, fields];  starts: int64 [slots + 1];  scales: float32 [room], see `operands.StoredSamples`
    """

    table: Tensor
    starts: Tensor
    scales: Tensor

    @classmethod
    def empty(cls, room: int, slots: int, fields: int, device: torch.device) -> "Tables":
        return cls(
            torch.zeros(room, fields, dtype=torch.int64, device=device),
            torch.zeros(slots + 1, dtype=torch.int64, device=device),
            torch.zeros(room, device=device),
        )

    def with_room_for(self, tasks: Mapping[int, list[tuple[int, Samples]]]) -> list["Tables"]:
        """These alone, or others behind them that have room for these tasks: slot -> [(offset, sample)]."""
        count, last = sum(map(len, tasks.values())), max(tasks, default=-1)
        (room, fields), slots = self.table.shape, self.starts.shape[0] - 1
        needed = max(fields, fields_of(one for found in tasks.values() for _, one in found))
        if count <= room and last < slots and needed == fields:
            return [self]
        room, slots = room if count <= room else 2 * count, slots if last < slots else 2 * (last + 1)
        return [self, Tables.empty(room, slots, needed, self.table.device)]

    def write(self, tasks: Mapping[int, list[tuple[int, Samples]]]) -> None:
        """All tasks that there is room for, in the order of their slots; of the others none."""
        room, fields = self.table.shape
        counts, rows, scales = [0] * (self.starts.shape[0] - 1), list[list[int]](), list[float]()
        for slot in sorted(tasks):
            samples = [one for _, one in tasks[slot]]
            if slot < len(counts) and len(rows) + len(samples) <= room and fields_of(samples) <= fields:
                counts[slot] = len(samples)
                rows += [row_of(slot, offset, one, fields) for offset, one in tasks[slot]]
                scales += [one.scale for one in samples]
        self.starts.copy_(torch.tensor([0, *counts]).cumsum(0))
        if rows:
            self.table[: len(rows)] = torch.tensor(rows, device=self.table.device)
            self.scales[: len(rows)] = torch.tensor(scales, device=self.scales.device)
