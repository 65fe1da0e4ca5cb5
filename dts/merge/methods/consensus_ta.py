"""Consensus task arithmetic (TALL masks)."""

from torch import Tensor

from ..registry import register


@register(
    "consensus_ta",
    "Wang et al. 2024, arXiv 2405.07813",
    threshold="lambda of the mask |tau_t| >= lambda |tau_sum - tau_t|",
    agree="k, the number of models whose masks must hold an entry",
    scale="alpha, the weight of the sum of deltas",
)
def consensus_ta(deltas: Tensor, tensor, *, threshold=0.4, agree=2, scale=0.3) -> Tensor:
    """Task arithmetic on the entries that at least k models need; the rest, selfish or useless, stay at the base."""
    if not 1 <= agree <= len(deltas):
        raise ValueError(f"consensus_ta: agree must be from 1 to the number of models, {len(deltas)}, not {agree}")
    total = deltas.sum(0)
    needed = (deltas.abs() >= threshold * (total - deltas).abs()).sum(0)
    return scale * total.where(needed >= agree, 0)
