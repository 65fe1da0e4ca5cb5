"""Packed factors of all loaded tasks of one layer, as the ops take them."""

import torch
from torch import Tensor

from . import contents
from .cpu.tasks import Tasks
from .disk_store import Derived, DiskStore
from .dispatch import bank_layout
from .layout import PackedFactors
from .operands import DenseOperands, FactorOperands
from .planar import PlanarStore
from .routing import Routing


class Bank:
    """Packed factors of every loaded task of one [out_features, in_features] layer.

    layout: "disk" keeps the memory of what is given (a mapped file stays one: nothing is copied on the CPU), and makes
    tensors when they are asked for (`disk_store.py`); "planar" keeps kernel words in chunks (`planar.py`), which is
    what the GPU kernels read.  None takes what the device needs.
    """

    def __init__(self, in_features: int, out_features: int, device="cpu", layout: str | None = None):
        self.in_features, self.out_features = in_features, out_features
        self.shape = torch.Size((out_features, in_features))
        self.device = torch.device(device)
        self.layout = layout or bank_layout(self.device)
        self._made: tuple[Routing, FactorOperands] | None = None  # for the routing that was used last
        self.ready: Derived | None = None
        self._store: DiskStore | PlanarStore
        if self.layout == "disk":
            self._store = DiskStore(in_features, out_features, self.device)
        else:
            self._store = PlanarStore(in_features, out_features, self.device)
        self._refresh()

    def add(self, slot: int, factors: PackedFactors) -> None:
        """Put a task's factors, of shape [out_features, in_features], into a free or used slot."""
        if slot < 0:
            raise ValueError(f"slot must be 0 or more, not {slot}")
        if factors.shape != self.shape:
            raise ValueError(
                f"factors of shape {list(factors.shape)} do not fit a layer of "
                f"[{self.out_features}, {self.in_features}] = [out_features, in_features]"
            )
        self._store.add(slot, factors)
        self._refresh()

    def reserve(self, tasks: int, rank: int) -> None:
        """Room for ``tasks`` tasks of up to ``rank`` ranks in slots below ``tasks``: launches, compiled programs and
        CUDA graphs made from now on follow them, and it stays when they go.

        Without it a task gets memory of its own when it is added, and nothing moves either; but a task of a higher
        slot, of more ranks or with levels as the first of its bank is one that what was made before does not know: it
        adds nothing for its rows there.  A task that is removed adds nothing in any of them.
        """
        if isinstance(self._store, PlanarStore):
            self._store.reserve(tasks, rank)
            self._refresh()

    def widen(self, tasks: int) -> None:
        """The half of `reserve` that takes next to no memory: a table for slots below ``tasks``, of ranks as now."""
        if isinstance(self._store, PlanarStore):
            self._store.widen(tasks)
            self._refresh()

    def remove(self, slot: int) -> None:
        """Empty a slot; rows routed to it get no delta."""
        self._store.remove(slot)
        self._refresh()

    def factors(self, slot: int) -> PackedFactors:
        return self._store.factors(slot)

    @property
    def slots(self) -> list[int]:
        return self._store.slots

    def __len__(self) -> int:
        """How many tasks have factors."""
        return len(self._store)

    @property
    def room(self) -> int:
        """Slots up to the last one in use, and on a GPU those that there is room for."""
        return self._store.room

    @property
    def has_levels(self) -> bool:
        """Whether some task has levels."""
        return self._store.has_levels

    @property
    def tasks(self) -> Tasks | None:
        """What C reads, another object after each change; None where it is told by `derived`."""
        store = self._store
        return store.tasks if isinstance(store, DiskStore) and store.all_read else None

    def held(self) -> list[Tensor]:
        """All memory of the bank's tasks, room for more included."""
        return self._store.held()

    @property
    def nbytes(self) -> int:
        return self._store.nbytes

    def to(self, device) -> "Bank":
        moved = Bank(self.in_features, self.out_features, device)
        for slot in self.slots:
            moved.add(slot, self.factors(slot))
        return moved

    @property
    def packed(self) -> list[Tensor]:
        """What the ops take: a flat list of tensors, and ``table`` that points into it."""
        return self.derived()[0]

    @property
    def table(self) -> Tensor:
        return self.derived()[1]

    @property
    def max_rank(self) -> int:
        return self._store.max_rank

    def operands(self, routing: Routing) -> FactorOperands:
        """What the ops take for a routing, made once for the one that was used last."""
        made = self._made
        if made is None or made[0] is not routing:
            self._made = made = routing, self.new_operands(routing)
        return made[1]

    def new_operands(self, routing: Routing) -> FactorOperands:
        """The same, not kept: for those who trace, whose programs must not depend on which routing was last."""
        packed, table, max_rank = self.derived()
        return FactorOperands(packed, table, routing.slots, routing.weights, self.out_features, max_rank, self.layout)

    def dense_operands(self, gamma: Tensor, base: Tensor | None) -> DenseOperands:
        """What `reconstruct` takes."""
        packed, table, max_rank = self.derived()
        return DenseOperands(packed, table, gamma, base, self.out_features, self.in_features, max_rank, self.layout)

    def derived(self) -> Derived:
        """(packed, table, max_rank), the same tuple until a task comes or goes."""
        if self.layout == "disk" and torch.compiler.is_compiling() or self.ready is None:
            self._prepare()
        assert self.ready is not None
        return self.ready

    def _prepare(self) -> bool:
        """Derived if it is not, also while a program is being made."""
        if self.ready is None:
            self.ready = self._store.derived()
        return True

    # what `torch.compiler.assume_constant_result` does, which imports for seconds: it runs while the program is made
    _prepare._dynamo_marked_constant = True  # type: ignore[attr-defined]

    def __getstate__(self) -> dict:
        """A copy's memory is elsewhere."""
        return self.__dict__ | {"ready": None, "_made": None}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._refresh()

    def _refresh(self) -> None:
        """What the ops take is made again: of kernel words now, as they lie, else when it is first needed."""
        self._made, self.ready, store = None, None, self._store
        if isinstance(store, PlanarStore):
            self.layout, self.ready = store.layout, store.derived()
            shape = self.out_features, self.in_features
            contents.trust(store.packed, store.table, self.layout, shape, store.max_rank, store.words)
