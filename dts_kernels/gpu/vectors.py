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
    launch.run(_call(stack, routing, out if y is None else y, out, rows, stride, y is not None))
    return out


def repeated(stack: Tensor, routing: Routing, dtype: torch.dtype, rows: int) -> launch.Bound | None:
    """What adds a row's tasks to each of so many rows of y [rows, width], if that was launched before."""
    if not readable(stack, routing, dtype, None) or stack.data_ptr() % launch.ALIGNMENT:
        return None
    like = stack.new_empty(0, dtype=dtype)
    return launch.bound_before(_call(stack, routing, like, like, rows, stack.shape[1], True))


def _call(stack: Tensor, routing: Routing, y: Tensor, out: Tensor, rows: int, stride: int, adds: bool) -> launch.Call:
    from .task_rows import task_rows

    (entries, places), tasks = routing.slots.shape, stack.shape[0]
    width = stack.numel() // tasks
    return launch.Call(
        task_rows,
        (rows, ceil_div(width, BLOCK)),
        (stack, routing.slots, routing.weights, y, out),
        (tasks, rows // entries, places, width, stride),
        {"BLOCK": BLOCK, "ADD": adds},
        {"num_warps": 4},
    )
