"""Components: sum_k sigma_k u_k v_k^T with 2-bit u and v, the kind of part that every compressed matrix has."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..bank import Bank
from ..embedding_parts import EmbeddingParts
from ..layout import PackedFactors
from ..ops import ReplayRows, add_embedding, delta_embedding, delta_linear, linear, reconstruct
from ..rounded import Addends
from ..routing import Routing
from .kind import Joined, Kind, PartBank


class ComponentBank(PartBank):
    """A `Bank` in the form of all kinds; components of rank 0 hold nothing.

    Factors of a transposed matrix have their two sides exchanged, so that the bank's are always of [out, in].
    """

    def __init__(
        self, in_features: int, out_features: int, device: torch.device | str = "cpu", transposed: bool = False
    ):
        self.bank, self.transposed = Bank(in_features, out_features, device), transposed

    def add(self, slot: int, data: list[Any]) -> None:
        if len(data) != 1:
            raise ValueError(f"a matrix has one run of components, all side by side along the rank, not {len(data)}")
        (factors,) = data
        if factors.rank:
            self.bank.add(slot, factors.transpose() if self.transposed else factors)
        else:
            self.bank.remove(slot)

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
        return self.bank.room

    @property
    def nbytes(self) -> int:
        return self.bank.nbytes

    def held(self) -> list[Tensor]:
        return self.bank.held()

    def addresses(self) -> list[Any]:
        return [] if self.bank.layout == "disk" else [*self.bank.packed, self.bank.table]

    def reserve(self, tasks: int) -> None:
        self.bank.widen(tasks)

    def to(self, device: torch.device | str) -> ComponentBank:
        moved = ComponentBank(self.bank.in_features, self.bank.out_features, device, self.transposed)
        moved.bank = self.bank.to(device)
        return moved

    def linear(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, routing: Routing, adds: Addends | None = None
    ) -> Tensor:
        return linear(x, weight, bias, self.bank, routing, adds)

    def product(self, x: Tensor, y: Tensor | None, routing: Routing) -> Tensor:
        return delta_linear(x, self.bank, routing, y)

    def rows(self, ids: Tensor, y: Tensor, routing: Routing) -> Tensor:
        return y + delta_embedding(ids, self.bank, routing, y.dtype)

    def dense(self, gamma: Tensor, base: Tensor | None, dtype: torch.dtype | None = None) -> Tensor:
        return reconstruct(self.bank, gamma, base, dtype)


class JoinedComponents(Joined):
    """Rows from the banks of a matrix's pieces in one call of C, or by a launch each."""

    def __init__(self, banks: list[tuple[ComponentBank, Tensor | None]], rows: int):
        self.parts = EmbeddingParts([(one.bank, lookup) for one, lookup in banks], rows)
        (bank, lookup), *others = self.parts.banks
        self.replay = None if others or lookup is not None or not self.parts.packed else ReplayRows(bank)

    def add(self, ids: Tensor, y: Tensor, routing: Routing) -> Tensor:
        made = None if self.replay is None else self.replay.add(ids, y, routing)
        return add_embedding(ids, y, self.parts, routing) if made is None else made


COMPONENTS = Kind("components", PackedFactors, ComponentBank, JoinedComponents)
