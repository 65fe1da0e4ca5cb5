"""No optimizer moves weights that loaded tasks are differences to.

Packed tasks cannot be trained.  Gradients pass through them, so whatever else there is can be: adapters above, a head
of one's own.  A trainer that is given the whole model would move the base under all of its tasks, without a word.
"""

from __future__ import annotations

import weakref
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook

from dts.checkpoint.errors import first
from dts.nn.layers import Layer
from dts.sites import raw

_guarded: weakref.WeakSet[nn.Module] = weakref.WeakSet()
_hook: list[Any] = []


def guard(model: nn.Module) -> None:
    """From now on, steps of optimizers that would move what tasks of this model change raise RuntimeError."""
    if not _hook:
        _hook.append(register_optimizer_step_pre_hook(_refuse))
    _guarded.add(model)


def _refuse(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    moved = {id(p) for group in optimizer.param_groups for p in group["params"] if p.grad is not None}
    for model in list(_guarded) if moved else ():
        layers: dict[str, Layer] = model.__dict__.get("_layers", {})
        names = [
            f"{name}.{parameter}"
            for name, layer in layers.items()
            for parameter, delta in layer.dts.parameters.items()
            if delta.slots and id(raw(layer, parameter)) in moved
        ]
        if names:
            raise RuntimeError(
                f"the optimizer would move weights of the base that the loaded tasks are differences to: "
                f"{first(names, 3)}.  Packed tasks cannot be trained: merge_and_unload(task) gives a plain model that "
                f"can, and model.requires_grad_(False) leaves the base as it is while something else is trained"
            )
