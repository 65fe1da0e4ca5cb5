"""Routings that stay where they are in memory, one for each number of rows: what programs and CUDA graphs read."""

from __future__ import annotations

from typing import Any

import torch

from dts.nn.routing.mixtures import Mixture, routing_of
from dts_kernels import Routing


class KeptRoutings:
    """Rows of a routing -> its tensors, written in place.  A graph follows what is set for as many rows as it was
    captured with, whatever is set for others meanwhile.

    captured: numbers of rows whose tensors a graph has read -> what is known of the last such graph, None: nothing.
    """

    def __init__(self) -> None:
        self._routings: dict[int, Routing] = {}
        self.captured: dict[int, Any] = {}

    def __getstate__(self) -> dict:
        """No graph follows a copy."""
        return vars(self) | {"captured": {}}

    def set(self, mixtures: list[Mixture], places: int, device: torch.device) -> Routing:
        """The routing of so many rows, with these contents and at least ``places`` places for the tasks of a mixture.

        Raises RuntimeError where a graph was captured with too few places for it.
        """
        kept = self._routings.get(len(mixtures))
        new = routing_of(mixtures, places if kept is None else kept.slots.shape[1], device)
        if kept is not None and new.slots.shape == kept.slots.shape and kept.slots.device == device:
            kept.slots.copy_(new.slots)
            kept.weights.copy_(new.weights)
            return kept
        if kept is not None and len(mixtures) in self.captured:
            raise RuntimeError(
                f"a CUDA graph was captured with {kept.slots.shape[1]} tasks in a mixture and cannot follow one of "
                f"{new.slots.shape[1]}: set such a mixture before the capture, and capture it again"
            )
        self._routings[len(mixtures)] = new
        return new

    def renumber(self, slot: int, other: int) -> None:
        """Rows that use a slot use another one (-1: none) from now on, in what graphs follow too."""
        for routing in self._routings.values():
            routing.slots.copy_(torch.where(routing.slots == slot, other, routing.slots))

    def to(self, device: torch.device | str) -> None:
        self._routings = {rows: routing.to(device) for rows, routing in self._routings.items()}
        self.captured = {}
