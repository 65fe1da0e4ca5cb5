"""The deltas of one layer's parameters, and where the rows of the batch are in its input."""

from __future__ import annotations

from torch import Tensor

from dts.nn.deltas import ParameterDelta
from dts.nn.layers.kept import Kept
from dts.nn.parallel.split import Split
from dts.nn.routing import Current, RoutingState, tracing
from dts_kernels import Routing

SHARED = -1  # the input has no batch axis but size 1 in the first: repeated for every row
REPEATED = -4  # an output of size 1 in the first axis, for all rows alike: repeated for every row
UNROUTABLE = -2  # the rows of the input cannot be told apart: only one mixture at a time


class RowsApart(RuntimeError):
    """A layer cannot tell the rows of a call apart, which was not seen when they were located.

    layer: its name;  why: as `RowAxes.unroutable` has it.
    """

    def __init__(self, message: str, layer: str, why: str):
        super().__init__(f"{message}; give rows of one task at a time")
        self.layer, self.why = layer, why


class LayerDeltas:
    """Deltas of one layer's parameters, and where the batch is in its input.

    heads: slots of the tasks that bring this layer whole
    in_base: the base has this layer too, for the tasks that do not; else it is only random numbers there
    split: what this process has of its parameters, None: all;  gathered: they are put together for each forward
    inside: the layer's own forward is being traced, which reads the raw parameters (eager code reads `raw`)
    at_once: kinds of input -> whether the layer's forward takes all rows together (`norm.DTSNorm`)
    kept: what its module keeps from call to call, None: that was not looked at yet
    prepared: kinds of input that a layer of codes was run with (`quantised`)
    own: the module's parameters that tasks change, to tell what a call puts in their place

    Where the batch is in the input depends on the call (`Current`): the axis of the input whose size is a multiple of
    the batch's rows, row by row; or SHARED or UNROUTABLE; 0 where nobody looked.
    """

    def __init__(self, state: RoutingState, name: str = ""):
        self.state, self.name = state, name
        self.parameters: dict[str, ParameterDelta] = {}
        self.heads: set[int] = set()
        self.in_base = False
        self.split: Split | None = None
        self.gathered = False
        self.inside = False
        self.at_once: dict[tuple, bool] = {}
        self.kept: Kept | None = None
        self.prepared: set[tuple] = set()
        self.own: dict[str, Tensor | None] = {}

    @property
    def slots(self) -> set[int]:
        return set().union(*[p.slots for p in self.parameters.values()])

    def get(self, name: str) -> ParameterDelta | None:
        return self.parameters.get(name)

    def acts(self, name: str) -> bool:
        """Whether a task of the present call changes this parameter."""
        now, delta = self.state.now(), self.parameters.get(name)
        return delta is not None and now.called and now.bypassed is None and now.uses(delta.slots)

    def axis(self, now: Current) -> int:
        return 0 if now.axis is None else now.axis.get(self.name, UNROUTABLE)

    def routed(self) -> bool:
        """Whether deltas apply at all in the present call.  Raises RowsApart in a layer that was not reached when the
        rows were located, RuntimeError where nobody locates them."""
        now = self.state.now()
        if not tracing() and now.seen is not None:
            now.seen.add(self.name)
        if now.rows == 1:
            return True
        if now is self.state.chosen and self.state.owner is not None and not tracing():
            raise RuntimeError(
                f"{self.name or 'a layer'} is called past its DTSModel, which alone finds where in its input the "
                f"{now.rows} rows are that set_tasks() has tasks for: call the DTSModel, or set_task() one for all rows"
            )
        if now.axis is not None and self.name not in now.axis and (tracing() or now.uses(self.slots)):
            raise RowsApart(f"{self.name} is reached by some inputs only", self.name, "only some inputs reach it")
        return self.axis(now) != UNROUTABLE

    def enter(self, x: Tensor) -> tuple[Tensor, Routing]:
        """The input with its batch axis first, and the routing on its device."""
        now = self.state.now()
        routing = now.on(x.device)
        rows = routing.slots.shape[0]
        if rows == 1:
            return x, routing
        axis = self.axis(now)
        if axis == SHARED and x.dim() and x.shape[0] == 1:
            return x.expand(rows, *x.shape[1:]), routing
        if axis < 0 or axis >= x.dim() or x.shape[axis] % rows:
            raise RowsApart(
                f"{self.name or 'a layer'} got an input {list(x.shape)} in which the {rows} rows of the batch cannot "
                "be told apart",
                self.name,
                "its input has not the same of every row",
            )
        return x.movedim(axis, 0), routing

    def leave(self, y: Tensor) -> Tensor:
        """Undo `enter` on the output."""
        now = self.state.now()
        axis = self.axis(now) if now.rows > 1 else 0
        return y.movedim(0, axis) if axis > 0 else y
