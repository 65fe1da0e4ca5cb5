"""The model within a `DTSModel`, called past it: what is set acts there, and a call's own ``tasks`` would be swallowed
by the many forwards that take any keyword."""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn


def refuse_tasks(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Before each forward of that model.  Raises TypeError for ``tasks``."""
    if "tasks" in kwargs:
        raise TypeError(
            "tasks= is the DTSModel's, and this is the model within it, on which only what set_task() chose acts: call "
            "the DTSModel"
        )


def watch(model: nn.Module) -> None:
    """From now on; once, and not where the model has ``tasks`` of its own."""
    if refuse_tasks in model._forward_pre_hooks.values():
        return
    try:
        own = "tasks" in inspect.signature(type(model).forward).parameters
    except (TypeError, ValueError):  # of a class that says nothing
        own = False
    if not own:
        model.register_forward_pre_hook(refuse_tasks, with_kwargs=True)


def unwatch(model: nn.Module) -> None:
    for key in [key for key, hook in model._forward_pre_hooks.items() if hook is refuse_tasks]:
        del model._forward_pre_hooks[key], model._forward_pre_hooks_with_kwargs[key]
