"""Weight average."""

import torch
from torch import Tensor

from ..registry import register


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
    if len(weights) != len(deltas) or not sum(weights):
        raise ValueError(f"average: weights must be {len(deltas)} numbers whose sum is not 0, not {weights}")
    return torch.tensordot(torch.tensor(weights, dtype=deltas.dtype) / sum(weights), deltas, dims=1)
