"""Packed factors of all loaded tasks of one layer, as the ops take them."""

from array import array
from struct import Struct

import torch
from torch import Tensor

from . import contents
from .contents import TABLE_FIELDS
from .dispatch import bank_layout
from .layout import PackedFactors
from .operands import DenseOperands, FactorOperands
from .planar import PlanarStore
from .reference import range_exponent
from .routing import Routing

EAGER = 8
ROW = Struct(f"={TABLE_FIELDS}q")  # of a table


class Bank:
    """Packed factors of every loaded task of one [out_features, in_features] layer.

    layout: "disk" keeps tensors as given (a memory-mapped file stays one: nothing is copied on the CPU); "planar"
    keeps kernel words in chunks (`planar.py`), which is what the GPU kernels read.  None takes what the device needs.
    """

    def __init__(self, in_features: int, out_features: int, device="cpu", layout: str | None = None):
        self.in_features, self.out_features = in_features, out_features
        self.shape = torch.Size((out_features, in_features))
        self.device = torch.device(device)
        self.layout = layout or bank_layout(self.device)
        # each change makes other dicts: what was told of an earlier table stays as it was
        self._factors: dict[int, PackedFactors] = {}
        self._exponents: dict[int, int] = {}  # of each: they all are asked for again whenever a task comes or goes
        self._ready: tuple[list[Tensor], Tensor, int] | None = None
        self._made: tuple[Routing, FactorOperands] | None = None  # for the routing that was used last
        self._store = None if self.layout == "disk" else PlanarStore(in_features, out_features, self.device)
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
        if self._store is not None:
            self._store.add(slot, factors)
            self._refresh()
            return
        own = factors.to(self.device)
        last = self._ready is not None and slot == self._ready[1].shape[0] and own.levels is None
        self._factors, self._exponents = self._factors | {slot: own}, self._exponents | {slot: range_exponent(own)}
        if last:
            self._append(slot, own)
        else:
            self._refresh(slot)

    def reserve(self, tasks: int, rank: int) -> None:
        """Room for ``tasks`` tasks of up to ``rank`` ranks in slots below ``tasks``: launches, compiled programs and
        CUDA graphs made from now on follow them, and it stays when they go.

        Without it a task gets memory of its own when it is added, and nothing moves either; but a task of a higher
        slot, of more ranks or with levels as the first of its bank is one that what was made before does not know: it
        adds nothing for its rows there.  A task that is removed adds nothing in any of them.
        """
        if self._store is not None:
            self._store.reserve(tasks, rank)
            self._refresh()

    def remove(self, slot: int) -> None:
        """Empty a slot; rows routed to it get no delta."""
        if self._store is None:
            if slot not in self._factors:
                return
            self._factors = {other: own for other, own in self._factors.items() if other != slot}
            self._exponents = {other: own for other, own in self._exponents.items() if other != slot}
        else:
            self._store.remove(slot)
        self._refresh(slot)

    def factors(self, slot: int) -> PackedFactors:
        return self._factors[slot] if self._store is None else self._store.factors(slot)

    @property
    def slots(self) -> list[int]:
        return sorted(self._factors if self._store is None else self._store.tasks)

    def held(self) -> list[Tensor]:
        """All memory of the bank's tasks, room for more included."""
        return self.packed if self._store is None else self._store.held()

    @property
    def nbytes(self) -> int:
        return sum(f.nbytes for f in self._factors.values()) if self._store is None else self._store.nbytes

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
        return self.derived()[2]

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

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        if self._store is not None:
            self._refresh()  # a copy's memory is elsewhere

    def _refresh(self, changed: int = 0) -> None:
        """Derive again what the ops take.  Beyond EAGER tasks on the CPU, when first needed: taking one task after
        another out would else go through all of them each time.  (A compiled program compiles again when that
        happens.)  changed: the slot that is another one."""
        held = None if self._ready is None else getattr(self._ready[1], contents.HELD, None)
        self._ready = self._made = None
        if self._store is not None:
            store, self.layout = self._store, self._store.layout
            self._ready = store.packed, store.table, store.max_rank
            shape = self.out_features, self.in_features
            contents.trust(store.packed, store.table, self.layout, shape, store.max_rank, store.words)
        elif len(self._factors) <= EAGER:
            self._ready = self._derive()
            if held is not None:
                self._own(held, changed)

    def _append(self, slot: int, new: PackedFactors) -> None:
        """One task more, behind the others."""
        packed, table, most = self.derived()
        held, at = getattr(table, contents.HELD, None), len(packed)
        row = ROW.pack(at, at + 1, at + 2, -1, new.rank, self._exponents[slot])
        rows = torch.frombuffer(bytearray(table.numpy().tobytes() + row), dtype=torch.int64)  # in a third of cat's time
        self._ready = [*packed, new.u, new.v, new.sigma], rows.view(-1, TABLE_FIELDS), max(most, new.rank)
        self._made = None
        if held is not None or not at:
            self._own(held, slot)

    def _own(self, before: contents.Contents | None, changed: int) -> None:
        """Tell what is in the table, which was looked at but for one slot."""
        assert self._ready is not None
        packed, table, _ = self._ready
        contents.own(packed, table, self._factors, self._exponents, before, changed)

    def derived(self) -> tuple[list[Tensor], Tensor, int]:
        """(packed, table, max_rank), the same tuple until a task comes or goes."""
        if self._ready is None:
            self._ready = self._derive()
        return self._ready

    def _derive(self) -> tuple[list[Tensor], Tensor, int]:
        packed: list[Tensor] = []
        flat, most = array("q"), 0
        for slot in range(max(self._factors, default=-1) + 1):
            f = self._factors.get(slot)
            if f is None:
                flat.extend((-1, -1, -1, -1, 0, 0))
                continue
            at, rank = len(packed), f.rank
            packed += (f.u, f.v, f.sigma) if f.levels is None else (f.u, f.v, f.sigma, f.levels)
            flat.extend((at, at + 1, at + 2, -1 if f.levels is None else at + 3, rank, self._exponents[slot]))
            most = max(most, rank)
        rows = torch.frombuffer(flat, dtype=torch.int64) if flat else torch.empty(0, dtype=torch.int64)
        return packed, rows.view(-1, TABLE_FIELDS), most
