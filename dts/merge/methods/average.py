"""Weight average."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from ..registry import is_number, register


@register(
    "average",
    "Wortsman et al. 2022, arXiv 2203.05482",
    needs_base=False,
    weights="one number a model, scaled to sum to 1; None: all equal",
)
def average(deltas: Tensor, tensor, *, weights=None) -> Tensor:
    """The mean of the models, theta_m = sum_i w_i theta_i; needs no base."""
    if weights is None:
        return deltas.mean(0)
    numbers = [float(w) for w in weights if is_number(w)] if isinstance(weights, Iterable) else []
    total = sum(numbers)
    if len(numbers) != len(deltas) or not total or not math.isfinite(total):
        raise ValueError(f"average: weights must be {len(deltas)} numbers whose sum is not 0, not {weights!r}")
    return torch.tensordot(torch.tensor(numbers, dtype=deltas.dtype) / total, deltas, dims=1)
