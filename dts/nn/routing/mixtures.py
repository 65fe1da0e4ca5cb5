"""Mixtures of tasks by their slots, and tensors of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from dts_kernels import Routing

Mixture = dict[int, float]  # slot -> gamma; empty is the base


@dataclass(frozen=True)
class ConstantRouting(Routing):
    """A routing that nobody writes into and that calls come back to.  made: what tables made of it, by themselves and a
    dtype, each with the `Table.version` that it is of."""

    made: dict[Any, tuple[int, Tensor]] = field(default_factory=dict, repr=False, compare=False)


def routing_of(mixtures: list[Mixture], places: int, device: torch.device | str) -> Routing:
    """One row of the routing for each mixture, with at least ``places`` places for its tasks.

    Never fewer places than before: going back from a mixture to one task keeps the shape.
    """
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
    """The routing as a matrix: float32 [rows of the routing, slots], the weight of each slot."""
    index = torch.where((routing.slots < 0) | (routing.slots >= slots), slots, routing.slots).long()
    dense = torch.zeros(index.shape[0], slots + 1, device=index.device)
    return dense.scatter_add(1, index, routing.weights)[:, :slots]


def beside(y: Tensor, values: Tensor) -> Tensor:
    """Values [R, ...], one a row of the routing, repeated to the rows of y, to broadcast over the middle.

    The first axis of y is a multiple of R.
    """
    repeated = values.repeat_interleave(y.shape[0] // values.shape[0], 0) if values.shape[0] > 1 else values
    return repeated.view(repeated.shape[0], *[1] * (y.dim() - values.dim()), *values.shape[1:])
