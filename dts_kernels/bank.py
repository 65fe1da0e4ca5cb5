"""All loaded tasks of one layer, and which of them each row of a batch uses."""

from dataclasses import dataclass

import torch
from torch import Tensor

from . import contents
from .contents import TABLE_FIELDS
from .dispatch import bank_layout
from .layout import PackedFactors
from .planar import PlanarStore
from .reference import range_exponent

EAGER = 8


@dataclass(frozen=True)
class Routing:
    """Which tasks each row of a batch uses, and how much of each.

    slots: int32 [R, P], a bank's slot or -1 for none; weights: float32 [R, P], the gammas.
    R is 1 (the same for every row) or the batch size; an input of ``rows`` rows, a multiple of R
    (tokens flattened batch-major), follows entry i // (rows / R) in its row i.
    Both are tensors of fixed shape: another task is other contents, never another program.
    """

    slots: Tensor
    weights: Tensor

    def __post_init__(self):
        if self.slots.dim() != 2 or self.slots.shape != self.weights.shape:
            raise ValueError(
                f"routing needs slots and weights of one shape [rows, places], "
                f"not {list(self.slots.shape)} and {list(self.weights.shape)}"
            )
        if self.slots.dtype != torch.int32 or self.weights.dtype != torch.float32:
            raise TypeError(
                f"routing needs int32 slots and float32 weights, not {self.slots.dtype} and {self.weights.dtype}"
            )

    @classmethod
    def of(cls, entries, device="cpu") -> "Routing":
        """From one item a row: a slot, None, or a mixture {slot: weight}."""
        mixtures = [e if isinstance(e, dict) else {} if e is None else {e: 1.0} for e in entries]
        places = max([len(m) for m in mixtures] + [1])
        slots = [list(m) + [-1] * (places - len(m)) for m in mixtures]
        weights = [list(m.values()) + [0.0] * (places - len(m)) for m in mixtures]
        return cls(
            torch.tensor(slots, dtype=torch.int32, device=device).reshape(-1, places),
            torch.tensor(weights, dtype=torch.float32, device=device).reshape(-1, places),
        )

    def to(self, device) -> "Routing":
        return Routing(self.slots.to(device), self.weights.to(device))


class Bank:
    """Packed factors of every loaded task of one [out_features, in_features] layer.

    layout: "disk" keeps tensors as given (a memory-mapped file stays one: nothing is copied on the CPU); "planar"
    keeps kernel words in arenas (`planar.py`), which is what the GPU kernels read.  None takes what the device needs.
    """

    def __init__(self, in_features: int, out_features: int, device="cpu", layout: str | None = None):
        self.in_features, self.out_features = in_features, out_features
        self.shape = torch.Size((out_features, in_features))
        self.device = torch.device(device)
        self.layout = layout or bank_layout(self.device)
        self._factors: dict[int, PackedFactors] = {}
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
        if self._store is None:
            self._factors[slot] = factors.to(self.device)
        else:
            self._store.add(slot, factors.to(self.device))
        self._refresh()

    def reserve(self, tasks: int, rank: int) -> None:
        """Room for ``tasks`` tasks of up to ``rank`` ranks: adding them then moves nothing a CUDA graph holds on to."""
        if self._store is not None:
            self._store.reserve(tasks, rank)
            self._refresh()

    def remove(self, slot: int) -> None:
        """Empty a slot; rows routed to it get no delta."""
        if self._store is None:
            self._factors.pop(slot, None)
        else:
            self._store.remove(slot)
        self._refresh()

    def factors(self, slot: int) -> PackedFactors:
        return self._factors[slot] if self._store is None else self._store.factors(slot)

    @property
    def slots(self) -> list[int]:
        return sorted(self._factors if self._store is None else self._store.levels)

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
        return self._derived()[0]

    @property
    def table(self) -> Tensor:
        return self._derived()[1]

    @property
    def max_rank(self) -> int:
        return self._derived()[2]

    def _refresh(self) -> None:
        """Derive again what the ops take.  Beyond EAGER tasks on the CPU, when first needed: loading one task after
        another would else go through all of them each time.  (A compiled program compiles again when that happens.)"""
        self._ready = None
        if self._store is not None:
            store, self.layout = self._store, self._store.layout
            self._ready = [store.words.tensor, store.scalars.tensor], store.table, store.max_rank
            contents.trust(*self._ready[:2], self.layout, self.shape, store.max_rank)
        elif len(self._factors) <= EAGER:
            self._ready = self._derive()

    def _derived(self) -> tuple[list[Tensor], Tensor, int]:
        if self._ready is None:
            self._ready = self._derive()
        return self._ready

    def _derive(self) -> tuple[list[Tensor], Tensor, int]:
        packed: list[Tensor] = []
        rows = [[-1, -1, -1, -1, 0, 0] for _ in range(max(self._factors, default=-1) + 1)]
        for slot, f in sorted(self._factors.items()):
            at = len(packed)
            packed += [f.u, f.v, f.sigma] + ([] if f.levels is None else [f.levels])
            rows[slot] = [at, at + 1, at + 2, at + 3 if f.levels is not None else -1, f.rank, range_exponent(f)]
        table = torch.tensor(rows, dtype=torch.int64).reshape(-1, TABLE_FIELDS)
        return packed, table, max((f.rank for f in self._factors.values()), default=0)
