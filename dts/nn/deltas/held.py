"""Products in compiled programs: a program holds where the deltas are, not the deltas.

What `torch.compile` traces would take every packed tensor of every task as an input of its program, and a task that is
loaded, or loaded again, would be other inputs: another program.  Instead a program has one op, which is given a key and
looks the deltas up when it runs, so that loading is other contents, as switching is.  The shapes that a task may change
(a wider head) are in the program, and a task that does change them costs one.

On the CPU and without gradients.  A backward pass needs the tensors of its forward, whatever was loaded since, and on a
GPU memory is reserved for tasks to come (`Bank.reserve`): there the tensors are inputs.
"""

from __future__ import annotations

import itertools
import threading
import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dts.nn.routing import tracing
from dts_kernels import Routing
from dts_kernels.ops.library import op

_numbers = itertools.count()
_alive: weakref.WeakValueDictionary[int, Held] = weakref.WeakValueDictionary()
_last = threading.local()


class Held:
    """What programs find by its key: int64 [], which a copy and a pickle have of their own."""

    key: Tensor

    def __init__(self) -> None:
        self._enter()

    def _enter(self) -> None:
        number = next(_numbers)
        self.key = torch.tensor(number)
        _alive[number] = self

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "key"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._enter()


def found(key: Tensor) -> Any:
    """What has this key.  Raises RuntimeError where it is gone: a program that outlived its model."""
    held = _alive.get(int(key))
    if held is None:
        raise RuntimeError(
            "a compiled program was called whose model is gone, with what its tasks change: compile again"
        )
    return held


def in_program(x: Tensor) -> bool:
    """Whether a program is traced now that `as_op` is for; x: what it computes with."""
    return tracing() and not torch.compiler.is_exporting() and not torch.is_grad_enabled() and x.device.type == "cpu"


def as_op(
    of: Held, method: str, tensors: Sequence[Tensor], routing: Routing, shape: Sequence[int], dtype: torch.dtype
) -> Tensor:
    """``of.method(*tensors, routing=routing, dtype=dtype)``, [*shape] in ``dtype``, as one op of a program.

    The method must not write into what it is given, nor give back what it holds.
    """
    given = list(tensors), routing.slots, routing.weights, list(shape), dtype
    made: Tensor = torch.ops.dts.held(of.key, method, *given)
    return made


@op(
    "held(Tensor key, str method, Tensor[] tensors, Tensor slots, Tensor weights, SymInt[] shape, ScalarType dtype) "
    "-> Tensor"
)
def _held(
    key: Tensor,
    method: str,
    tensors: list[Tensor],
    slots: Tensor,
    weights: Tensor,
    shape: list[int],
    dtype: torch.dtype,
) -> Tensor:
    made: Tensor = getattr(found(key), method)(*tensors, routing=_routing(slots, weights), dtype=dtype)
    if list(made.shape) != list(shape) or made.dtype != dtype:
        raise RuntimeError(
            f"a compiled program takes {method} for {list(shape)} in {dtype}, and it is {list(made.shape)} in "
            f"{made.dtype} since a task was loaded past its DTSModel: torch._dynamo.reset() and compile again"
        )
    # an op may give back nothing that it was given
    return made.clone() if any(made.data_ptr() == tensor.data_ptr() for tensor in tensors) else made


@torch.library.register_fake("dts::held")
def _(
    key: Tensor, method: str, tensors: list[Tensor], slots: Tensor, weights: Tensor, shape: Any, dtype: Any
) -> Tensor:
    return slots.new_empty(shape, dtype=dtype)


def _routing(slots: Tensor, weights: Tensor) -> Routing:
    """One object for all layers of a call, by which banks remember what they made of it."""
    routing: Routing | None = getattr(_last, "routing", None)
    if routing is None or routing.slots is not slots or routing.weights is not weights:
        routing = _last.routing = Routing(slots, weights)
    return routing
