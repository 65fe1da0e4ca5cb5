"""Small dense products, a matrix a task: heads, raw deltas."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dts.nn.deltas import Table
from dts.nn.layers.layer_deltas import beside
from dts.nn.routing import gammas
from dts_kernels import Routing


def per_task_product(x: Tensor, weights: Table, routing: Routing, transposed: bool = False) -> Tensor:
    """x W_t^T weighted by each row's gammas, for a small dense W_t a task (heads, raw deltas).

    weights: [tasks, out, in] ([tasks, in, out] if transposed).  All tasks' products are taken at once and the row's
    chosen: another task is another choice, never another shape.  Returns [..., out].
    """
    stack = weights.stack.transpose(1, 2) if transposed else weights.stack
    tasks, width = stack.shape[:2]
    products = nn.functional.linear(x, stack.flatten(0, 1).to(x.dtype)).unflatten(-1, (tasks, width))
    gamma = gammas(routing, tasks).to(x.dtype) * (weights.length > 0)
    return (products * beside(products, gamma[:, :, None])).sum(-2)


def head(
    x: Tensor,
    weights: Table,
    biases: Table | None,
    routing: Routing,
    dtype: torch.dtype,
    padding: bool = False,
    transposed: bool = False,
) -> Tensor:
    """x W_t^T + b_t of each row's task; outputs beyond the task's own number are -inf."""
    y = per_task_product(x, weights, routing, transposed).to(dtype)
    if biases is not None and biases.tensors:
        y = y + beside(y, biases.rows(routing, dtype))
    own = torch.arange(y.shape[-1], device=y.device) < weights.lengths(routing)[:, None]
    return y.masked_fill(~beside(y, own), -torch.inf) if padding else y
