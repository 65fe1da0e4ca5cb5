"""The arenas a bank keeps in kernel words: what a GPU kernel needs to find any task, all of it on the device.

words: int32 [capacity], every task's V and U words;  scalars: float32 [capacity], for every task

    2^-e | V's coefficients f g b one | U's | 7 unused | sigma * 2^e, 0 up to a multiple of 16

table: int64 [slots, 4], offsets of V's words, U's words and the scalars, and the rank (0: no task in the slot).

Tasks come and go inside arenas that stay where they are, so compiled programs and captured CUDA graphs go on
working; only growing beyond the capacity makes new ones (twice the size).
"""

import math

import torch
from torch import Tensor

from .layout import (
    COLUMN_BLOCK,
    KernelFactors,
    PackedFactors,
    from_kernel_layout,
    level_coefficients,
    round_up,
    to_kernel_layout,
    words_shape,
)
from .reference import range_exponent

FIELDS, HEADER = 4, 16  # as in gpu/decode.py
RANK_BLOCK = 128  # ranks a bank's capacity grows by


def grown(tensor: Tensor, size: int) -> Tensor:
    larger = tensor.new_zeros(size, *tensor.shape[1:])
    larger[: tensor.shape[0]] = tensor
    return larger


class Arena:
    """A tensor of slots of any size: first fit into the gaps, twice the size when none fits."""

    def __init__(self, dtype: torch.dtype, device):
        self.tensor = torch.zeros(1024, dtype=dtype, device=device)
        self.taken: dict[int, tuple[int, int]] = {}  # slot -> (start, stop)

    def put(self, slot: int, values: Tensor) -> int:
        """Copy 1-D values in; returns their offset, a multiple of 16."""
        start, size = 0, round_up(values.numel(), COLUMN_BLOCK)
        for taken_start, taken_stop in sorted(self.taken.values()):
            if taken_start - start >= size:
                break
            start = taken_stop
        if start + size > self.tensor.numel():
            self.tensor = grown(self.tensor, max(2 * self.tensor.numel(), start + size))
        self.tensor[start : start + values.numel()] = values
        self.taken[slot] = (start, start + size)
        return start


class PlanarStore:
    """Factors of the tasks of one [out_features, in_features] layer in kernel words."""

    def __init__(self, in_features: int, out_features: int, device):
        self.in_features, self.out_features = in_features, out_features
        self.words, self.scalars = Arena(torch.int32, device), Arena(torch.float32, device)
        self.table = torch.zeros(8, FIELDS, dtype=torch.int64, device=device)
        self.levels: dict[int, Tensor | None] = {}  # of the tasks that are in; on the CPU
        self.exponents: dict[int, int] = {}
        self.max_rank = 0

    @property
    def layout(self) -> str:
        """ "planar", or "planar_levels" once a task has had levels (which needs three products instead of one)."""
        return "planar_levels" if any(levels is not None for levels in self.levels.values()) else "planar"

    def add(self, slot: int, factors: PackedFactors) -> None:
        self.remove(slot)
        if slot >= self.table.shape[0]:
            self.table = grown(self.table, max(2 * self.table.shape[0], slot + 1))
        words, exponent = to_kernel_layout(factors), range_exponent(factors)
        u_levels, v_levels = (None, None) if factors.levels is None else factors.levels.cpu()
        header = [2.0**-exponent, *level_coefficients(v_levels), *level_coefficients(u_levels)]
        head = torch.tensor(header + [0.0] * (HEADER - len(header)), device=factors.sigma.device)
        v = self.words.put(slot, torch.cat([words.v.flatten(), words.u.flatten()]))
        scalars = self.scalars.put(slot, torch.cat([head, factors.sigma * 2.0**exponent]))
        sigma_end = scalars + HEADER + factors.rank
        self.scalars.tensor[sigma_end : self.scalars.taken[slot][1]] = 0
        self.table[slot] = torch.tensor([v, v + words.v.numel(), scalars, factors.rank])
        self.levels[slot] = None if factors.levels is None else factors.levels.cpu()
        self.exponents[slot] = exponent
        self.max_rank = max(self.max_rank, round_up(factors.rank, RANK_BLOCK))

    def reserve(self, tasks: int, rank: int) -> None:
        """Make room for ``tasks`` tasks of up to ``rank`` ranks in slots below ``tasks``."""
        words = math.prod(words_shape(rank, self.out_features)) + math.prod(words_shape(self.in_features, rank))
        for arena, size in ((self.words, words), (self.scalars, HEADER + round_up(rank, COLUMN_BLOCK))):
            wanted = max([stop for _, stop in arena.taken.values()], default=0) + tasks * size
            if wanted > arena.tensor.numel():
                arena.tensor = grown(arena.tensor, wanted)
        if tasks > self.table.shape[0]:
            self.table = grown(self.table, tasks)
        self.max_rank = max(self.max_rank, round_up(rank, RANK_BLOCK))

    def remove(self, slot: int) -> None:
        """max_rank stays, so that nothing that was compiled or captured changes."""
        if slot in self.levels:
            self.table[slot] = 0
            del self.levels[slot], self.exponents[slot]
            self.words.taken.pop(slot), self.scalars.taken.pop(slot)

    def factors(self, slot: int) -> PackedFactors:
        return read_factors(
            self.words.tensor,
            self.scalars.tensor,
            self.table[slot].tolist(),
            self.exponents[slot],
            self.levels[slot],
            self.in_features,
            self.out_features,
        )

    @property
    def nbytes(self) -> int:
        """Bytes of the arenas, room for more tasks included."""
        return sum(t.numel() * t.element_size() for t in (self.words.tensor, self.scalars.tensor, self.table))


def read_factors(
    words: Tensor,
    scalars: Tensor,
    row: list[int],
    exponent: int,
    levels: Tensor | None,
    in_features: int,
    out_features: int,
) -> PackedFactors:
    """One task's factors in disk bytes, from the arenas and its table row."""
    v, u, scalar, rank = row
    read = lambda start, shape: words[start : start + math.prod(shape)].view(shape)  # noqa: E731
    sigma = scalars[scalar + HEADER : scalar + HEADER + rank] * 2.0**-exponent
    return from_kernel_layout(
        KernelFactors(
            read(u, words_shape(rank, out_features)),
            read(v, words_shape(in_features, rank)),
            sigma,
            None if levels is None else levels.to(words.device),
            (out_features, in_features),
        )
    )


def planar_factors(
    packed: list[Tensor], table: Tensor, in_features: int, out_features: int
) -> tuple[dict[int, PackedFactors], dict[int, int]]:
    """The inverse of a planar bank's table: (slot -> factors, slot -> range exponent), for the reference."""
    words, scalars = packed
    factors, exponents = {}, {}
    for slot, row in enumerate(table.tolist()):
        if row[3]:
            header = scalars[row[2] : row[2] + HEADER].double()
            exponents[slot] = round(-torch.log2(header[0]).item())
            levels = None
            if header[1:9].tolist() != 2 * level_coefficients(None):
                levels = torch.stack([levels_of(header[5:9]), levels_of(header[1:5])]).float()
            factors[slot] = read_factors(words, scalars, row, exponents[slot], levels, in_features, out_features)
    return factors, exponents


def levels_of(coefficients: Tensor) -> Tensor:
    """The inverse of `level_coefficients`."""
    f, g, b, one = coefficients
    return torch.stack([s * (f * size + g * (1.25 - size)) + b * size + one for s in (1, -1) for size in (0.25, 1.0)])
