"""DARE: drop entries at random and rescale the rest, alone or before the sign election of TIES."""

import torch
from torch import Tensor

from ..registry import register
from .ties import disjoint_mean


def drop_and_rescale(deltas: Tensor, tensor, drop: float) -> Tensor:
    """Each entry becomes 0 with probability ``drop``, else itself / (1 - drop): unbiased."""
    if not 0 <= drop < 1:
        raise ValueError(f"dare: drop must be at least 0 and below 1, not {drop}")
    kept = [torch.rand(d.shape, generator=tensor.generator(i)) >= drop for i, d in enumerate(deltas)]
    return deltas.where(torch.stack(kept), 0) / (1 - drop)


@register(
    "dare",
    "Yu et al. 2024, arXiv 2311.03099",
    draws=True,
    drop="p, probability with which an entry is dropped",
    scale="lambda, the weight of the sum of deltas",
)
def dare(deltas: Tensor, tensor, *, drop=0.9, scale=0.3) -> Tensor:
    """Drop entries at random, rescale the rest by 1 / (1 - p), then task arithmetic."""
    return scale * drop_and_rescale(deltas, tensor, drop).sum(0)


@register(
    "dare_ties",
    "Yu et al. 2024, arXiv 2311.03099; Yadav et al. 2023, arXiv 2306.01708",
    draws=True,
    drop="p, probability with which an entry is dropped",
    scale="lambda, the weight of the merged delta",
)
def dare_ties(deltas: Tensor, tensor, *, drop=0.9, scale=1.0) -> Tensor:
    """Drop and rescale as DARE in place of trimming, then elect signs and average those that agree as TIES."""
    return scale * disjoint_mean(drop_and_rescale(deltas, tensor, drop))
