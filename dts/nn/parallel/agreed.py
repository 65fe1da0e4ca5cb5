"""One choice of tasks for all processes of a split model.

Each process computes scores from the same inputs, and rounds by itself: another number of threads or another kind of
machine adds in another order, and of tasks that are near-duplicates each could choose another one.  A process's part of
one task's product would then be added to its part of another's.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from dts.nn.parallel.sharded import gathered
from dts.nn.router import Choice
from dts.sites import is_distributed


def agreed(choice: Choice, model: nn.Module) -> Choice:
    """The first process's choice, in all processes that share one batch: each of them has to ask.

    Costs two broadcasts, of a split model alone.  Under FSDP2 each process has rows of its own, and its own choice.
    """
    mesh = _split_over(model)
    if mesh is None:
        return choice
    import torch.distributed as dist

    said = [choice]
    dist.broadcast_object_list(said, group=mesh.get_group(), group_src=0)
    return said[0]


def _split_over(model: nn.Module) -> Any:
    """The processes that the model is split over, as a mesh of one dimension, the only one that tasks are loaded on;
    None where it is not."""
    whole, found = gathered(model), list[Any]()
    for module in model.modules():
        if id(module) not in whole:
            found += [one for one in module._parameters.values() if is_distributed(one)]
    return next((one.device_mesh for one in found if one.device_mesh.ndim == 1), None)
