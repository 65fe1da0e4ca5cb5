"""Samples: 2-bit values at places that follow from a seed (`dts_kernels.samples`), of what components leave."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..ops import add_dense_samples, add_sampled_rows, add_samples, start_samples
from ..paths import Finish
from ..routing import Routing
from ..sample_bank import SampleBank
from ..samples import Samples
from .kind import Kind, PartBank


class SamplePartBank(PartBank):
    """A `SampleBank` in the form of all kinds; a mixture of tasks has a sample a member."""

    def __init__(
        self, in_features: int, out_features: int, device: torch.device | str = "cpu", transposed: bool = False
    ):
        self.bank = SampleBank(in_features, out_features, device, transposed)

    def add(self, slot: int, data: list[Any]) -> None:
        self.bank.add(slot, tuple(data))

    def remove(self, slot: int) -> None:
        self.bank.remove(slot)

    @property
    def slots(self) -> list[int]:
        return self.bank.slots

    @property
    def filled(self) -> bool:
        return len(self.bank) > 0

    @property
    def room(self) -> int:
        return self.bank.arguments.starts.shape[0] - 1

    @property
    def nbytes(self) -> int:
        return self.bank.nbytes

    def held(self) -> list[Tensor]:
        return self.bank.held()

    def addresses(self) -> list[Any]:
        codes, *tables = self.bank.arguments
        return [] if self.bank.arena is None else [*codes, *tables]

    def reserve(self, tasks: int) -> None:
        self.bank.widen(tasks)

    def to(self, device: torch.device | str) -> SamplePartBank:
        moved = SamplePartBank(self.bank.in_features, self.bank.out_features, device, self.bank.transposed)
        moved.bank = self.bank.to(device)
        return moved

    def product(self, x: Tensor, y: Tensor | None, routing: Routing) -> Tensor:
        y = x.new_zeros(*x.shape[:-1], self.bank.out_features) if y is None else y
        return add_samples(x, y, self.bank, routing)

    @property
    def starts(self) -> bool:
        return self.bank.arena is not None

    def start(self, x: Tensor, routing: Routing) -> Finish | None:
        return start_samples(x, self.bank, routing)

    def rows(self, ids: Tensor, y: Tensor, routing: Routing) -> Tensor:
        return add_sampled_rows(ids, y, self.bank, routing)

    def dense(self, gamma: Tensor, base: Tensor | None, dtype: torch.dtype | None = None) -> Tensor:
        shape = (self.bank.out_features, self.bank.in_features)
        dtype = dtype or (torch.float32 if base is None else base.dtype)
        base = torch.zeros(shape, dtype=dtype, device=self.bank.device) if base is None else base.to(dtype)
        return add_dense_samples(base, self.bank, gamma)


SAMPLE = Kind("sample", Samples, SamplePartBank)
