"""Packed factors in memory borrowed from others, as from an adapter's file: tensors are made for whoever asks.

Three tensors of PyTorch's for a matrix, and what keeps them, take a kilobyte and ten microseconds: as much as the
factors of a small one, and as all else that is done to load them.
"""

from __future__ import annotations

from ctypes import c_float
from typing import Any

import torch
from torch import Tensor

from .layout import PackedFactors, packed_width

Memory = tuple[torch.UntypedStorage, torch.UntypedStorage]  # of codes, of float32 numbers


class BorrowedFactors(PackedFactors):
    """`PackedFactors` without levels, on a CPU, whose tensors lie row by row.

    memory: what they lie in, which lives as long as this;  u_at, v_at, sigma_at: addresses.
    What is made of them by `dataclasses.replace` are ordinary ones.
    """

    memory: Memory
    u_at: int
    v_at: int
    sigma_at: int
    __slots__ = ("memory", "rank", "shape", "sigma_at", "u_at", "v_at")

    def __new__(cls, *given: Any, **fields: Any) -> Any:
        return PackedFactors(*given, **fields)

    @classmethod
    def at(
        cls, memory: Memory, u_at: int, v_at: int, sigma_at: int, shape: tuple[int, int], rank: int
    ) -> BorrowedFactors:
        """shape: (m, n) of the product.  What is said of the memory is not looked at."""
        made, put = object.__new__(cls), object.__setattr__
        put(made, "memory", memory)
        put(made, "u_at", u_at)
        put(made, "v_at", v_at)
        put(made, "sigma_at", sigma_at)
        put(made, "shape", shape)
        put(made, "rank", rank)
        return made

    @property
    def u(self) -> Tensor:
        return self._codes(self.u_at, self.shape[0])

    @property
    def v(self) -> Tensor:
        return self._codes(self.v_at, self.shape[1])

    @property
    def sigma(self) -> Tensor:
        return tensor_at(self.memory[1], self.sigma_at, torch.float32, (self.rank,), (1,))

    @property
    def levels(self) -> None:
        return None

    @property
    def scales(self) -> list[float]:
        return (c_float * self.rank).from_address(self.sigma_at)[:]

    @property
    def nbytes(self) -> int:
        return sum(self.shape) * packed_width(self.rank) + 4 * self.rank

    def transpose(self) -> PackedFactors:
        return BorrowedFactors.at(self.memory, self.v_at, self.u_at, self.sigma_at, self.shape[::-1], self.rank)

    def to(self, device: torch.device | str) -> PackedFactors:
        return self if torch.device(device).type == "cpu" else super().to(device)

    def _codes(self, at: int, rows: int) -> Tensor:
        width = packed_width(self.rank)
        return tensor_at(self.memory[0], at, torch.uint8, (rows, width), (width, 1))


def tensor_at(
    memory: torch.UntypedStorage, address: int, dtype: torch.dtype, shape: tuple[int, ...], strides: tuple[int, ...]
) -> Tensor:
    """A tensor whose first element is at an address in this memory."""
    first = (address - memory.data_ptr()) // dtype.itemsize if address else 0
    return tensor_in(memory, first, dtype, shape, strides)


def tensor_in(
    memory: torch.UntypedStorage, first: int, dtype: torch.dtype, shape: tuple[int, ...], strides: tuple[int, ...]
) -> Tensor:
    """A tensor that begins so many elements behind this memory's first."""
    made: Any = torch.empty(0, dtype=dtype)  # no view, of which PyTorch would keep 300 bytes more
    found: Tensor = made.set_(memory, first, shape, strides)
    return found
