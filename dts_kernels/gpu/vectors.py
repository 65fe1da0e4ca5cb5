"""The launch of `task_rows`: what tasks add to vectors."""

import torch
from torch import Tensor

from ..layout import ceil_div
from ..routing import Routing
from . import launch

BLOCK = 512
FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def readable(stack: Tensor, routing: Routing, dtype: torch.dtype, y: Tensor | None) -> bool:
    """Whether these lie on a GPU as the kernel reads them, and it can write ``dtype``."""
    slots, weights, device = routing.slots, routing.weights, stack.get_device()
    return (
        launch.launcher.index(stack) >= 0
        and dtype in FLOATS
        and stack.dtype in FLOATS
        and stack.numel() > 0
        and stack.is_contiguous()
        and slots.is_contiguous()
        and weights.is_contiguous()
        and slots.get_device() == weights.get_device() == device
        and not (stack.is_neg() or weights.is_neg())
        and (y is None or y.dtype in FLOATS and y.is_contiguous() and y.get_device() == device and not y.is_neg())
    )


def task_rows(stack: Tensor, routing: Routing, y: Tensor | None, out: Tensor, rows: int, stride: int) -> Tensor:
    """Into out; the arguments are the kernel's."""
    from .task_rows import task_rows

    (entries, places), tasks = routing.slots.shape, stack.shape[0]
    width = stack.numel() // tasks
    launch.run(
        launch.Call(
            task_rows,
            (rows, ceil_div(width, BLOCK)),
            (stack, routing.slots, routing.weights, out if y is None else y, out),
            (tasks, rows // entries, places, width, stride),
            {"BLOCK": BLOCK, "ADD": y is not None},
            {"num_warps": 4},
        )
    )
    return out
