"""The naive bank of any kind of part: dense matrices and PyTorch's products, the twin of every fast one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from ..routing import Routing
from .kind import PartBank


class PlainBank(PartBank):
    """A bank that knows of its data only how to make it dense: all that a kind without kernels needs.

    matrix: (data, dtype) -> the dense [m, n] it stands for; data is a dataclass with ``shape``, ``nbytes`` and ``to``.
    Every loaded task's product is taken, weighted by each row's gamma: another task is other contents of the routing,
    never another program.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        device: torch.device | str = "cpu",
        transposed: bool = False,
        *,
        matrix: Callable[[Any, torch.dtype], Tensor],
    ):
        self.in_features, self.out_features, self.device = in_features, out_features, torch.device(device)
        self.transposed, self.matrix = transposed, matrix
        self._data: dict[int, list[Any]] = {}

    def add(self, slot: int, data: list[Any]) -> None:
        if slot < 0:
            raise ValueError(f"slot must be 0 or more, not {slot}")
        shape = (self.out_features, self.in_features)
        shape = shape[::-1] if self.transposed else shape
        for one in data:
            if tuple(one.shape) != shape:
                raise ValueError(f"{type(one).__name__} of {list(one.shape)} do not fit a matrix of {list(shape)}")
        self._data[slot] = [one.to(self.device) for one in data]

    def remove(self, slot: int) -> None:
        self._data.pop(slot, None)

    @property
    def slots(self) -> list[int]:
        return sorted(self._data)

    @property
    def nbytes(self) -> int:
        return sum(one.nbytes for data in self._data.values() for one in data)

    def held(self) -> list[Tensor]:
        found = [getattr(one, f.name) for data in self._data.values() for one in data for f in fields(one)]
        return [t for t in found if isinstance(t, Tensor)]

    def to(self, device: torch.device | str) -> PlainBank:
        moved = PlainBank(self.in_features, self.out_features, device, self.transposed, matrix=self.matrix)
        for slot, data in self._data.items():
            moved.add(slot, data)
        return moved

    def _matrices(self, dtype: torch.dtype):
        """(slot, D [out_features, in_features]) of every task."""
        for slot in self.slots:
            for one in self._data[slot]:
                full = self.matrix(one, dtype)
                yield slot, full.T if self.transposed else full

    def product(self, x: Tensor, y: Tensor | None, routing: Routing) -> Tensor:
        wide = _wide(x.dtype)
        out = x.new_zeros(*x.shape[:-1], self.out_features, dtype=wide) if y is None else y.to(wide)
        for slot, matrix in self._matrices(wide):
            gamma = _gamma(routing, slot, x.shape[:-1]).to(wide)
            out = out + torch.where(gamma != 0, gamma * (x.to(wide) @ matrix.T), 0)
        return out.to(x.dtype)

    def rows(self, ids: Tensor, y: Tensor, routing: Routing) -> Tensor:
        wide = _wide(y.dtype)
        out, place = y.to(wide), ids.clamp(min=0).long()
        for slot, matrix in self._matrices(wide):
            gamma = _gamma(routing, slot, ids.shape).to(wide) * (ids >= 0)[..., None]
            out = out + torch.where(gamma != 0, gamma * matrix[place], 0)
        return out.to(y.dtype)

    def dense(self, gamma: Tensor, base: Tensor | None, dtype: torch.dtype | None = None) -> Tensor:
        dtype = dtype or (torch.float32 if base is None else base.dtype)
        wide = _wide(dtype)
        shape = (self.out_features, self.in_features)
        out = torch.zeros(shape, dtype=wide, device=self.device) if base is None else base.to(wide)
        for slot, matrix in self._matrices(wide):
            if slot < gamma.shape[0]:
                out = out + gamma[slot].to(wide) * matrix
        return out.to(dtype)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _gamma(routing: Routing, slot: int, shape: torch.Size) -> Tensor:
    """float32 [..., 1]: how much of a slot each of the rows ``shape`` uses."""
    own = torch.where(routing.slots == slot, routing.weights, 0.0).sum(1)
    entries = own.shape[0]
    if entries == 1:
        return own
    return own.repeat_interleave(shape.numel() // entries).view(*shape, 1)
