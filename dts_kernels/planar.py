"""What a bank keeps in kernel words: what a GPU kernel needs to find any task, all of it on the device.

A task is one run of an `Arena`, numbers (as float32) before words:

    2^-e | V's coefficients f g b one | U's | 7 unused | sigma * 2^e | V's words | U's words

`Table`: int64 [slots, 4], offsets of V's words, U's words and the numbers from the arena's anchor, and the rank (0: no
task in the slot).  Anchor and table are all that a kernel is given, and they stay where they are while tasks come and
go, so launches, compiled programs and captured CUDA graphs go on working.  A table is for kernels of one width
(`max_rank`) and one kind of codes: a task that is beyond either, or in a slot beyond the table, makes a new table, and
the ones before are still kept up to date for those who hold them, without the tasks that their kernels cannot do.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .arena import ALIGN, Arena, piece
from .layout import (
    KernelFactors,
    PackedFactors,
    from_kernel_layout,
    level_coefficients,
    rank_words_in_memory,
    rank_words_of_memory,
    rank_words_size,
    round_up,
    to_kernel_layout,
    words_shape,
)
from .reference import range_exponent

FIELDS, HEADER = 4, 16  # as in gpu/decode.py
RANK_BLOCK = 128  # ranks a bank's capacity grows by


class Table(NamedTuple):
    """Rows of the tasks that kernels of this width can do; levels: whether they can do any four values."""

    rows: Tensor
    max_rank: int
    levels: bool

    def takes(self, slot: int, rank: int, levels: bool) -> bool:
        return slot < self.rows.shape[0] and rank <= self.max_rank and self.levels >= levels


class Task(NamedTuple):
    """Of one that is in: its rank, range exponent, and levels on the CPU or None."""

    rank: int
    exponent: int
    levels: Tensor | None


class PlanarStore:
    """Factors of the tasks of one [out_features, in_features] layer in kernel words."""

    def __init__(self, in_features: int, out_features: int, device):
        self.in_features, self.out_features = in_features, out_features
        self.words = Arena(torch.int32, device)
        self.tables = [Table(self._in_anchor(), 0, False)]  # the last one is what new kernels get
        self.packed = [self.words.tensor, self.words.tensor.view(torch.float32)]
        self.tasks: dict[int, Task] = {}

    @property
    def table(self) -> Tensor:
        return self.tables[-1].rows

    @property
    def max_rank(self) -> int:
        return self.tables[-1].max_rank

    def derived(self) -> tuple[list[Tensor], Tensor, int]:
        """(packed, table, max_rank) for the ops."""
        return self.packed, self.table, self.max_rank

    @property
    def has_levels(self) -> bool:
        return self.tables[-1].levels

    def __len__(self) -> int:
        return len(self.tasks)

    @property
    def slots(self) -> list[int]:
        return sorted(self.tasks)

    @property
    def room(self) -> int:
        """Slots that there is room for."""
        return self.table.shape[0]

    @property
    def layout(self) -> str:
        """ "planar", or "planar_levels" while a task has levels (which needs three products instead of one)."""
        return "planar_levels" if self.tables[-1].levels else "planar"

    def add(self, slot: int, factors: PackedFactors) -> None:
        """Factors on any device: their bytes are copied once, as they are on disk, and turned into words there."""
        self.remove(slot)
        exponent = range_exponent(factors)
        levels = None if factors.levels is None else factors.levels.cpu()
        u_levels, v_levels = (None, None) if levels is None else levels
        header = [2.0**-exponent, *level_coefficients(v_levels), *level_coefficients(u_levels)]
        numbers = torch.zeros(self._sizes(factors.rank)[0])
        numbers[: len(header)] = torch.tensor(header)
        numbers[HEADER : HEADER + factors.rank] = factors.sigma.cpu() * 2.0**exponent
        own = to_kernel_layout(factors.to(self.words.tensor.device))
        u, sizes = rank_words_in_memory(own.u, factors.rank), self._sizes(factors.rank)
        run = self.words.view(self.words.room(slot, sum(sizes)), sum(sizes))
        for part, values in zip(run.split(sizes), (numbers.view(torch.int32), own.v.flatten(), u)):
            part.copy_(values)
        self.tasks[slot] = Task(factors.rank, exponent, levels)
        self._use(slot + 1, factors.rank)
        self._write([slot])

    def reserve(self, tasks: int, rank: int) -> None:
        """Make room for ``tasks`` tasks of up to ``rank`` ranks in slots below ``tasks``."""
        self.words.reserve(tasks, sum(self._sizes(rank)))
        self._use(tasks, rank)

    def widen(self, tasks: int) -> None:
        """A table for slots below ``tasks``, of the ranks so far."""
        self._use(tasks, 0)

    def remove(self, slot: int) -> None:
        """Its bytes are free for the next.  max_rank stays, so that nothing that was compiled or captured changes."""
        if self.tasks.pop(slot, None) is not None:
            self._write([slot])  # before its memory may be another's
            self.words.drop(slot)
            self._use(0, 0)

    def factors(self, slot: int) -> PackedFactors:
        task = self.tasks[slot]
        row = [*self._places(slot), task.rank]
        return read_factors(self.packed, row, task.exponent, task.levels, self.in_features, self.out_features)

    def held(self) -> list[Tensor]:
        """All memory: the anchor, which holds the first table, the chunks, and the tables after it."""
        first = self.words.tensor.untyped_storage().data_ptr()
        later = [t.rows for t in self.tables if t.rows.untyped_storage().data_ptr() != first]
        return [self.words.tensor, *self.words.chunks, *later]

    @property
    def nbytes(self) -> int:
        """Bytes of all memory, room for more tasks included."""
        return sum(t.nbytes for t in self.held())

    def _sizes(self, rank: int) -> list[int]:
        """Elements of a task's numbers, V's words and U's words."""
        v, u = math.prod(words_shape(self.in_features, rank)), rank_words_size(rank, self.out_features)
        return [round_up(HEADER + rank, ALIGN), v, u]

    def _places(self, slot: int) -> tuple[int, int, int]:
        """Offsets of V's words, U's words and the numbers."""
        start = self.words.taken[slot][0]
        numbers, v, _ = self._sizes(self.tasks[slot].rank)
        return start + numbers, start + numbers + v, start

    def _in_anchor(self) -> Tensor:
        """The first table's rows, behind zeros that a kernel may read as the numbers of a slot without a task."""
        return self.words.tensor[HEADER : HEADER + 8 * 2 * FIELDS].view(torch.int64).view(8, FIELDS)

    def _use(self, slots: int, rank: int) -> None:
        """Make the last table one of at least so many slots and ranks, and of the levels of the tasks that are in."""
        now = self.tables[-1]
        levels = any(task.levels is not None for task in self.tasks.values())
        slots = now.rows.shape[0] if slots <= now.rows.shape[0] else max(2 * now.rows.shape[0], slots)
        rank = max(now.max_rank, round_up(rank, RANK_BLOCK))
        if (slots, rank, levels) == (now.rows.shape[0], now.max_rank, now.levels):
            return
        found = [t for t in self.tables if (t.rows.shape[0], t.max_rank, t.levels) == (slots, rank, levels)]
        if found:
            self.tables = [t for t in self.tables if t is not found[0]] + found
        elif now.max_rank == 0 and slots == now.rows.shape[0]:  # without ranks no kernel was given this one
            self.tables[-1] = Table(now.rows, rank, levels)
        else:
            self.tables.append(Table(now.rows.new_zeros(slots, FIELDS), rank, levels))
        self._write(list(self.tasks), self.tables[-1:])

    def _write(self, slots: list[int], tables: list[Table] | None = None) -> None:
        for rows, max_rank, levels in self.tables if tables is None else tables:
            for slot in slots:
                task = self.tasks.get(slot)
                if task is not None and Table(rows, max_rank, levels).takes(slot, task.rank, task.levels is not None):
                    rows[slot] = torch.tensor([*self._places(slot), task.rank])
                elif slot < rows.shape[0]:
                    rows[slot] = 0

    def __getstate__(self) -> dict:
        """A copy has its memory elsewhere and no graph that holds a table: it makes its own of the last one."""
        return self.__dict__ | {"packed": None, "tables": (self.table.shape[0], self.max_rank)}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self.words.tensor.zero_()
        self.packed = [self.words.tensor, self.words.tensor.view(torch.float32)]
        self.tables = [Table(self._in_anchor(), 0, False)]
        self._use(*state["tables"])
        self._write(list(self.tasks))


def read_factors(
    packed: list[Tensor], row: list[int], exponent: int, levels: Tensor | None, in_features: int, out_features: int
) -> PackedFactors:
    """One task's factors in disk bytes, from its table row.  Raises ValueError where that points elsewhere."""
    words, scalars = packed
    v, u, scalar, rank = row
    shape = words_shape(in_features, rank)
    u_words = rank_words_of_memory(piece(words, u, rank_words_size(rank, out_features)), rank, out_features)
    v_words = piece(words, v, math.prod(shape)).view(shape)
    sigma = piece(scalars, scalar + HEADER, rank) * 2.0**-exponent
    return from_kernel_layout(
        KernelFactors(
            u_words,
            v_words,
            sigma,
            None if levels is None else levels.to(words.device),
            (out_features, in_features),
        )
    )


def planar_factors(
    packed: list[Tensor], table: Tensor, in_features: int, out_features: int
) -> tuple[dict[int, PackedFactors], dict[int, int]]:
    """The inverse of a planar bank's table: (slot -> factors, slot -> range exponent), for the reference."""
    factors, exponents = {}, {}
    for slot, row in enumerate(table.tolist()):
        if row[3]:
            header = piece(packed[1], row[2], HEADER).double().cpu()
            exponents[slot] = round(-torch.log2(header[0]).item())
            levels = None
            if header[1:9].tolist() != 2 * level_coefficients(None):
                levels = torch.stack([levels_of(header[5:9]), levels_of(header[1:5])]).float()
            factors[slot] = read_factors(packed, row, exponents[slot], levels, in_features, out_features)
    return factors, exponents


def levels_of(coefficients: Tensor) -> Tensor:
    """The inverse of `level_coefficients`."""
    f, g, b, one = coefficients
    return torch.stack([s * (f * size + g * (1.25 - size)) + b * size + one for s in (1, -1) for size in (0.25, 1.0)])
