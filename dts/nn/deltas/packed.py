"""Tasks' packed parts of one matrix, whole or only of some of its rows and columns."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dts_kernels import (
    Bank,
    PackedFactors,
    Routing,
    SampleBank,
    Samples,
    add_dense_samples,
    add_sampled_rows,
    add_samples,
    delta_embedding,
    delta_linear,
    linear,
    reconstruct,
)


class Packed:
    """Packed components and samples of tasks of one [m, n] matrix.

    transposed: samples are of the [n, m] matrix; components have two sides to exchange instead.
    """

    def __init__(self, shape: tuple[int, int], device="cpu", transposed=False):
        self.bank = Bank(shape[1], shape[0], device)
        self.samples = SampleBank(shape[1], shape[0], device, transposed)

    def add(self, slot: int, packed: PackedFactors, samples: tuple[Samples, ...]) -> None:
        self.bank.add(slot, packed)
        if samples:
            self.samples.add(slot, samples)

    def remove(self, slot: int) -> None:
        self.bank.remove(slot)
        self.samples.remove(slot)

    def to(self, device) -> Packed:
        moved = Packed(self.bank.shape, device, self.samples.transposed)
        moved.bank, moved.samples = self.bank.to(device), self.samples.to(device)
        return moved

    def held(self) -> list[Tensor]:
        return self.bank.packed + self.samples.arguments[0]

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None, routing: Routing, adds: Tensor | None) -> Tensor:
        return self._sampled(x, linear(x, weight, bias, self.bank, routing, adds), routing)

    def product(self, x: Tensor, routing: Routing, y: Tensor | None = None) -> Tensor:
        """y (None: zeros) + x Delta^T of each row's tasks."""
        return self._sampled(x, delta_linear(x, self.bank, routing, y), routing)

    def _sampled(self, x: Tensor, y: Tensor, routing: Routing) -> Tensor:
        return add_samples(x, y, self.samples, routing) if len(self.samples) else y

    def rows(self, ids: Tensor, routing: Routing, dtype: torch.dtype) -> Tensor:
        """Rows ``ids`` (int64 [...], -1 = none) of the delta: dtype [..., n]."""
        return self.sampled_rows(ids, delta_embedding(ids, self.bank, routing, dtype), routing)

    def sampled_rows(self, ids: Tensor, y: Tensor, routing: Routing) -> Tensor:
        return add_sampled_rows(ids, y, self.samples, routing) if len(self.samples) else y

    def dense(self, gamma: Tensor, base: Tensor | None = None, dtype: torch.dtype | None = None) -> Tensor:
        full = reconstruct(self.bank, gamma, base, dtype)
        return add_dense_samples(full, self.samples, gamma) if len(self.samples) else full


@dataclass
class Block:
    """A task's factors that cover only some rows or columns of the matrix (int64 indices; None = all)."""

    packed: Packed
    rows: Tensor | None
    columns: Tensor | None
    lookup: Tensor | None  # int32 [all rows]: row of the matrix -> row of the packed one, -1 = none

    def to(self, device) -> Block:
        move = lambda t: None if t is None else t.to(device)  # noqa: E731
        return Block(self.packed.to(device), move(self.rows), move(self.columns), move(self.lookup))

    def where(self, ids: Tensor) -> Tensor:
        """Rows of the packed matrix for rows of the whole one."""
        return ids if self.lookup is None else torch.where(ids < 0, -1, self.lookup[ids.clamp(min=0)].long())
