"""Which task each row uses: one state that every DTS layer of a model shares."""

from __future__ import annotations

from contextlib import contextmanager

import torch
from torch import Tensor

from dts_kernels import Routing

Mixture = dict[int, float]  # slot -> gamma; empty is the base


class RoutingState:
    """The current routing, held in tensors so that a switch is other contents, never another program.

    routing: `Routing` with one entry (all rows alike) or one a row of the batch.
    mixtures: the same as Python values, for the few layers that run once a task.
    missing: layer name -> why it cannot run now (a head the row's task does not have).
    probing: the base runs on any input, only to see where the rows are; ids of a task's own vocabulary are no error.
    """

    def __init__(self, device="cpu"):
        self.routing = _routing([{}], 1, device)
        self.mixtures: list[Mixture] = [{}]
        self.missing: dict[str, str] = {}
        self.probing = False

    @property
    def rows(self) -> int:
        """Entries of the routing: 1, or the batch size."""
        return self.routing.slots.shape[0]

    def on(self, device: torch.device) -> Routing:
        """The routing on a layer's device."""
        return self.routing if self.routing.slots.device == device else self.routing.to(device)

    def to(self, device) -> None:
        self.routing = self.routing.to(device)

    def set(self, mixtures: list[Mixture], missing: dict[str, str] | None = None) -> None:
        """Switch.  Shapes that fit are written in place, so compiled programs and CUDA graphs stay valid."""
        self.mixtures, self.missing = mixtures, missing or {}
        new = _routing(mixtures, self.routing.slots.shape[1], self.routing.slots.device)
        if new.slots.shape == self.routing.slots.shape:
            self.routing.slots.copy_(new.slots)
            self.routing.weights.copy_(new.weights)
        else:
            self.routing = new

    @contextmanager
    def using(self, mixtures: list[Mixture], missing: dict[str, str] | None = None):
        """Other tasks for a while.  The tensors themselves are exchanged: a backward pass may still need these."""
        before = self.routing, self.mixtures, self.missing
        self.routing = _routing(mixtures, self.routing.slots.shape[1], self.routing.slots.device)
        self.mixtures, self.missing = mixtures, missing or {}
        try:
            yield
        finally:
            self.routing, self.mixtures, self.missing = before


def _routing(mixtures: list[Mixture], places: int, device) -> Routing:
    """Never fewer places than before: going back from a mixture to one task keeps the shape."""
    with torch.inference_mode(False):
        routing = Routing.of(mixtures, device)
        missing = places - routing.slots.shape[1]
        if missing > 0:
            pad = torch.nn.functional.pad
            routing = Routing(pad(routing.slots, (0, missing), value=-1), pad(routing.weights, (0, missing)))
        return routing


def groups(mixtures: list[Mixture]) -> list[tuple[Mixture, list[int]]]:
    """The distinct mixtures, each with the rows that use it, in order of first use."""
    found: list[tuple[Mixture, list[int]]] = []
    for row, mixture in enumerate(mixtures):
        for other, rows in found:
            if other == mixture:
                rows.append(row)
                break
        else:
            found.append((mixture, [row]))
    return found


def gammas(routing: Routing, slots: int) -> Tensor:
    """The routing as a matrix: float32 [entries, slots], the weight of each slot."""
    index = torch.where((routing.slots < 0) | (routing.slots >= slots), slots, routing.slots).long()
    dense = torch.zeros(index.shape[0], slots + 1, device=index.device)
    return dense.scatter_add(1, index, routing.weights)[:, :slots]
