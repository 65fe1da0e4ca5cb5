"""What a kind of part is at run time, and which kinds there are."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import dispatch
from ..cpu import native
from ..embedding_parts import row_in
from ..ops import add_rows, direct
from ..paths import Finish
from ..rounded import Addends, if_tensor
from ..routing import Routing


class PartBank(ABC):
    """What all loaded tasks store, in one kind of part, of one [out_features, in_features] matrix.

    Slots are the tasks' numbers; data is always given as stored, of the transposed matrix if the bank is told so.
    Products are of each row's tasks, gamma each, as `Routing` says; a slot that holds nothing adds nothing.
    """

    @abstractmethod
    def add(self, slot: int, data: list[Any]) -> None:
        """Put a task's data into a free or used slot.  Raises ValueError if it does not fit the matrix."""

    @abstractmethod
    def remove(self, slot: int) -> None:
        """Empty a slot; an empty one stays so."""

    @property
    @abstractmethod
    def slots(self) -> list[int]:
        """Those that hold something, ascending."""

    @property
    def filled(self) -> bool:
        """Whether some slot holds something."""
        return bool(self.slots)

    @property
    def room(self) -> int:
        """Slots that gammas should be for: those in use, and on a GPU those that a captured graph will meet."""
        return max([-1, *self.slots]) + 1

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes of what it holds, room for more tasks included."""

    @abstractmethod
    def held(self) -> list[Tensor]:
        """Every tensor that takes memory."""

    def addresses(self) -> list[Any]:
        """All whose addresses kernels are given: a CUDA graph goes on as long as they are these."""
        return list(self.held())

    def reserve(self, tasks: int) -> None:
        """Let tasks in slots below that, as large as those that are in, change no `addresses`; they get memory of their
        own when they are added."""
        return None

    @abstractmethod
    def to(self, device: torch.device | str) -> PartBank:
        """A bank of the same on another device."""

    @abstractmethod
    def product(self, x: Tensor, y: Tensor | None, routing: Routing) -> Tensor:
        """y (None: zeros) + x D^T.  x [..., in_features]; y and what is returned [..., out_features] in x's dtype."""

    @property
    def starts(self) -> bool:
        """Whether `start` ever does something, as the bank is now."""
        return False

    def start(self, x: Tensor, routing: Routing) -> Finish | None:
        """`product` in two: what needs no y is launched now, to run beside the base's product, and what is returned
        takes y, once, and gives the sum.  None, with nothing done: `product` is as fast.
        """
        return None

    @abstractmethod
    def rows(self, ids: Tensor, y: Tensor, routing: Routing) -> Tensor:
        """y + rows ``ids`` of D: int64 or int32 [...], -1 = zeros; y [..., in_features]."""

    @abstractmethod
    def dense(self, gamma: Tensor, base: Tensor | None, dtype: torch.dtype | None = None) -> Tensor:
        """base (None: zeros) + the sum of gamma D, [out_features, in_features] in ``dtype`` (None: base's).

        gamma: float32 [slots], those that are missing are 0.
        """

    def linear(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, routing: Routing, adds: Addends | None = None
    ) -> Tensor:
        """x W^T + b + x D^T + gamma adds[task], all in x's dtype; a kind that has this in one call says so here.

        adds: float32 [slots, out_features], perhaps in few bits, or None.
        """
        y = base_product(x, weight, bias, routing, adds)
        return self.product(x, y, routing)


def base_product(x: Tensor, weight: Tensor, bias: Tensor | None, routing: Routing, adds: Addends | None) -> Tensor:
    """x W^T + b + gamma adds[task], without any part."""
    y = torch.nn.functional.linear(x, weight, bias)
    return y if adds is None else add_rows(y, adds, routing)


def whole_pays(x: Tensor, weight: Tensor, bias: Tensor | None, adds: Addends | None, routing: Routing) -> bool:
    """Whether x W^T + b of enough rows (`cpu.rules.whole_from`) may be taken with all deltas in a copy of W: of one
    mixture, in float32 on a CPU with the compiled library, without gradients, and not in `exact_products`."""
    return (
        routing.slots.shape[0] == 1
        and x.is_cpu
        and x.dtype is weight.dtype is torch.float32
        and bool(native.variant())
        and not dispatch.exact()
        and direct(x, weight, bias, if_tensor(adds))
    )


class Joined:
    """Banks of one kind that each hold some rows of one matrix [rows, n], no slot in two of them.

    banks: each with int32 [rows], the bank's row of every row of the matrix (-1: none), or None where it has all.
    """

    def __init__(self, banks: list[tuple[PartBank, Tensor | None]], rows: int):
        self.banks, self.slots = banks, [set(bank.slots) for bank, _ in banks]

    def add(self, ids: Tensor, y: Tensor, routing: Routing) -> Tensor:
        """y + rows ``ids`` [...] (-1 = none) of the matrix; y [..., n] may be written into."""
        slots = routing.slots
        used = set(slots.flatten().tolist()) if slots.is_cpu and direct(ids, y, slots) else None  # else who knows
        for (bank, lookup), own in zip(self.banks, self.slots):
            if used is not None and own.isdisjoint(used):
                continue
            y = bank.rows(row_in(lookup, ids), y, routing)
        return y


@dataclass(frozen=True)
class Kind:
    """A kind of part: a way to store a matrix, whose products are added to those of the other kinds.

    name: as the adapter's format has it;  data: the class of what is stored, which no other kind has
    bank: (in_features, out_features, device, transposed) -> an empty `PartBank`
    join: (banks with lookups, rows) -> `Joined`, for a kind that takes rows from several banks in one call
    """

    name: str
    data: type
    bank: Callable[[int, int, torch.device | str, bool], PartBank]
    join: Callable[[list[tuple[Any, Tensor | None]], int], Joined] = Joined


KINDS: dict[str, Kind] = {}  # by name, in the order in which their products are added


def register(kind: Kind) -> Kind:
    """Make a kind known.  Raises ValueError where its name or its class of data is taken."""
    if kind.name in KINDS or any(known.data is kind.data for known in KINDS.values()):
        raise ValueError(f"a kind of part {kind.name!r}, or one with data {kind.data.__name__}, is there already")
    KINDS[kind.name] = kind
    return kind


def kind_of(data: Any) -> Kind:
    """The kind that stores such data.  Raises TypeError if there is none."""
    for kind in KINDS.values():
        if isinstance(data, kind.data):
            return kind
    raise TypeError(f"{type(data).__name__} is the data of no kind of part; known kinds are {list(KINDS)}")
