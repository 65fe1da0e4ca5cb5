"""A `DTSModel` as a module whose routing is an input: what is traced into a program."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from dts.exports.program.manifest import INPUTS
from dts.exports.program.shared import Shared
from dts.nn import DTSModel
from dts.nn.routing import Current
from dts.nn.views import plain
from dts_kernels import Routing


class Routed(nn.Module):
    """forward(slots, weights, *inputs) -> {name: tensor} of the model's outputs; inputs also by their names.

    slots: int32 [rows, places], the slot of each of a row's tasks, -1 = none;  weights: float32 [rows, places]
    One row of the routing is for all rows of the inputs, or there is one for each.
    """

    def __init__(self, model: DTSModel, inputs: Sequence[str], places: dict[str, Any], options: Mapping[str, Any]):
        """inputs: the model's keyword arguments that are inputs of the program, in this order;  places: fields of
        `Current` that say where the rows are;  options: further keyword arguments, the same in every call."""
        super().__init__()
        self.__class__ = type("Routed", (Routed,), {"forward": _with_names(inputs)})
        self.model = plain(model.model)
        self.factors = nn.ModuleDict()
        self._state, self._places, self._options = model._state, places, dict(options)
        self._every = {loaded.slot: 1.0 for loaded in model._loaded.values()}
        self.shared = Shared(1 + max(self._every, default=-1))

    def run(self, slots: Tensor, weights: Tensor, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        call = Current(self._state, Routing(slots, weights), [self._every], padded=True, called=True, **self._places)
        with self._state._within(call, traced=False):
            return named(self.model(**inputs, **self._options))


def _with_names(inputs: Sequence[str]) -> Callable[..., dict[str, Tensor]]:
    """A forward with a parameter for each input: torch.export names what it makes by them."""

    def forward(self: Routed, slots: Tensor, weights: Tensor, *args: Tensor, **kwargs: Tensor) -> dict[str, Tensor]:
        return self.run(slots, weights, dict(zip(inputs, args)) | kwargs)

    parameters = [
        inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in ("self", *INPUTS, *inputs)
    ]
    forward.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return forward


def named(output: Any) -> dict[str, Tensor]:
    """The tensors of a model's output by name, those of a tuple or a bare tensor by number."""
    if isinstance(output, Tensor):
        return {"output": output}
    items = output.items() if isinstance(output, Mapping) else enumerate(output)
    found = {name if isinstance(name, str) else f"output{name}": t for name, t in items if isinstance(t, Tensor)}
    if not found:
        raise ValueError(f"the model's output, a {type(output).__name__}, has no tensor of its own: nothing to export")
    return found
