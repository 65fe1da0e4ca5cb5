"""A bank's tasks as they lie on disk: C is told where their bytes are, tensors are made for whoever asks for them."""

from array import array

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from . import contents
from .contents import TABLE_FIELDS
from .cpu.tasks import Tasks, readable
from .layout import PackedFactors
from .reference import range_exponent

Derived = tuple[list[Tensor], Tensor, int]


class DiskStore:
    """As `planar.PlanarStore`.  On a CPU the memory of what is given is used as it is: a mapped file stays one.

    tasks: what C reads, another object after each change;  max_rank: no task has more.
    """

    layout = "disk"

    def __init__(self, in_features: int, out_features: int, device: torch.device):
        self.in_features, self.out_features, self.device = in_features, out_features, device
        self.tasks, self.max_rank = Tasks.none(), 0
        self._ranks: dict[int, int] = {}  # of all tasks
        self._given: dict[int, PackedFactors] = {}  # those that `Tasks.factors` does not make again
        self._unread: set[int] = set()  # those that C cannot read

    @property
    def all_read(self) -> bool:
        """Whether C can read every task."""
        return not self._unread

    def __len__(self) -> int:
        return len(self._ranks)

    @property
    def slots(self) -> list[int]:
        return sorted(self._ranks)

    @property
    def room(self) -> int:
        """Slots up to the last one in use."""
        return max(self._ranks, default=-1) + 1

    @property
    def has_levels(self) -> bool:
        return any(own.levels is not None for own in self._given.values())

    def factors(self, slot: int) -> PackedFactors:
        own = self._given.get(slot)
        return self.tasks.factors(slot) if own is None else own

    def add(self, slot: int, factors: PackedFactors) -> None:
        own = factors.to(self.device)
        self._ranks[slot] = own.rank
        self._changed(slot, own)

    def remove(self, slot: int) -> None:
        if self._ranks.pop(slot, None) is not None:
            self._changed(slot, None)

    def held(self) -> list[Tensor]:
        """The tensors of all tasks."""
        return [t for slot in self.slots for t in self.factors(slot).tensors]

    @property
    def nbytes(self) -> int:
        return sum(self.factors(slot).nbytes for slot in self.slots)

    def derived(self) -> Derived:
        """(packed, table, max_rank) for the ops, made anew; whoever traces or leaves gradients out sees none of it."""
        with _disable_current_modes(), torch.inference_mode(False):
            packed, flat = list[Tensor](), array("q")
            factors, exponents = {slot: self.factors(slot) for slot in self.slots}, dict[int, int]()
            for slot in range(self.room):
                f, at = factors.get(slot), len(packed)
                if f is None:
                    flat.extend((-1, -1, -1, -1, 0, 0))
                    continue
                packed += f.tensors
                exponents[slot] = range_exponent(f)
                flat.extend((at, at + 1, at + 2, -1 if f.levels is None else at + 3, f.rank, exponents[slot]))
            rows = torch.frombuffer(flat, dtype=torch.int64) if flat else torch.empty(0, dtype=torch.int64)
            table = rows.view(-1, TABLE_FIELDS)
            if self.all_read:
                contents.own(packed, table, factors, exponents, self.tasks)
            return packed, table, self.max_rank

    def __getstate__(self) -> dict:
        """A copy has its memory elsewhere."""
        given = {slot: self.factors(slot) for slot in self.slots}
        return {"of": (self.in_features, self.out_features, self.device), "given": given}

    def __setstate__(self, state: dict) -> None:
        DiskStore.__init__(self, *state["of"])
        for slot, factors in state["given"].items():
            self.add(slot, factors)

    def _changed(self, slot: int, own: PackedFactors | None) -> None:
        """A slot has these factors now, None: none."""
        self.max_rank = max(self._ranks.values(), default=0)
        self._given.pop(slot, None)
        self._unread.discard(slot)
        if own is not None and not readable(own):
            self._unread.add(slot)
        self.tasks = self.tasks.changed(slot, None if slot in self._unread else own)
        if own is not None and not self.tasks.knows(slot):
            self._given[slot] = own
