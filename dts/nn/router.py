"""What chooses tasks from inputs, for ``tasks="auto"``; `dts.unseen` has one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

from dts.adapter import Adapter
from dts.services import service


@dataclass(frozen=True)
class Choice:
    """The task of each row.

    tasks: a name a row, None (the base) where the confidence is below the floor: what ``DTSModel`` takes as ``tasks=``.
    confidence: float32 [rows], the probability of the best task; scores: float32 [rows, tasks], columns as ``names``.
    """

    tasks: list[str | None]
    confidence: Tensor
    scores: Tensor
    names: list[str]


class Router(Protocol):
    def route(self, model: nn.Module, batch: Mapping[str, Tensor], floor: float = 0.0) -> Choice:
        """The task of every row of the model's keyword inputs."""


class MakeRouter(Protocol):
    def __call__(
        self, model: nn.Module, adapters: Mapping[str, Adapter], batch: Mapping[str, Tensor], unlabelled: bool = False
    ) -> Router:
        """A router for these tasks; batch: keyword inputs, of no meaning or (unlabelled) of all tasks."""


def make_router(
    model: nn.Module, adapters: Mapping[str, Adapter | None], batch: Mapping[str, Tensor], unlabelled: bool = False
) -> Router:
    """Raises ValueError where a task was not loaded from an adapter: there is nothing to tell it by."""
    known = {name: adapter for name, adapter in adapters.items() if adapter is not None}
    bare = [name for name in adapters if name not in known]
    if bare or not adapters:
        raise ValueError(f"to choose, tasks must be loaded from adapters; not so: {bare or 'none is loaded'}")
    make: MakeRouter = service("router")
    return make(model, known, batch, unlabelled=unlabelled)
