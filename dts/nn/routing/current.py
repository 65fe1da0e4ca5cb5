"""What one call of a model is routed by, and how code anywhere below that call finds it."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass, field

import torch

from dts.nn.routing.mixtures import Mixture
from dts_kernels import Routing


@dataclass(eq=False)
class Current:
    """What one call is routed by.

    state: the `RoutingState` that it is of.
    routing: `Routing` with one row (all rows of the batch alike) or one for each;  mixtures: the same as Python values.
    missing: layer name -> why it cannot run now (a head the row's task does not have).
    axis, axes: layer name -> where the rows are in its input, see `LayerDeltas`; None: not looked for.
    probing: the base runs on any input, only to see where the rows are; ids of a task's own vocabulary are no error.
    bypassed: names of parameters that were read past their layer's forward, where somebody asks for them.
    padded: logits have one width whatever the tasks, with -inf beyond the classes of each.
    called: a call of the model; else a part of one, or a stretch without tasks.
    outer: the call that this one is within, of whatever model.
    seen: names of layers that ran, and of parameters ("layer.weight") that were read, where somebody asks for them.
    graph: the backward pass within which it began, -1 = none.
    """

    state: object
    routing: Routing
    mixtures: list[Mixture]
    missing: dict[str, str] = field(default_factory=dict)
    axis: dict[str, int] | None = None
    axes: dict[str, tuple[list[int], list[int]]] | None = None
    probing: bool = False
    bypassed: set[str] | None = None
    padded: bool = False
    called: bool = False
    outer: Current | None = None
    seen: set[str] | None = None
    graph: int = -1

    @property
    def rows(self) -> int:
        """Rows of the routing: 1, or the batch size."""
        return self.routing.slots.shape[0]

    def on(self, device: torch.device) -> Routing:
        """The routing on a layer's device."""
        return self.routing if self.routing.slots.device == device else self.routing.to(device)

    def uses(self, slots: set[int]) -> bool:
        """Whether some row uses one of these slots."""
        return any(slot in slots for mixture in self.mixtures for slot in mixture)


calls: ContextVar[Current | None] = ContextVar("dts_call", default=None)
call_here = calls.get  # the innermost call of this thread, of whatever model
tracing = torch.compiler.is_dynamo_compiling
backward_here = torch._C._current_graph_task_id  # -1 outside of a backward pass


def left(call: Current) -> None:
    """A call ends, or a stretch of code with a task: here the one around it goes on.

    Generators may end in another order than they began in: who ends is taken out from among the others.
    """
    inner = call_here()
    if inner is call:
        calls.set(call.outer)
        return
    while inner is not None:
        if inner.outer is call:
            inner.outer = call.outer
        inner = inner.outer
