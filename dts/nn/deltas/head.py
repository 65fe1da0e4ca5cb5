"""Heads that tasks bring whole: each row's own."""

from __future__ import annotations

import torch
from torch import Tensor

from dts.nn.deltas.per_task import per_task_product
from dts.nn.deltas.table import Table
from dts.nn.routing import beside
from dts_kernels import Routing


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
    if biases is not None and biases.filled:
        y = y + beside(y, biases.rows(routing, dtype))
    own = torch.arange(y.shape[-1], device=y.device) < weights.lengths(routing)[:, None]
    return y.masked_fill(~beside(y, own), -torch.inf) if padding else y
