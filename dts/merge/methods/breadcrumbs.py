"""Model Breadcrumbs."""

from torch import Tensor

from ..registry import register


@register(
    "breadcrumbs",
    "Davari and Belilovsky 2024, arXiv 2312.06795",
    small="beta, share of a tensor's entries dropped because they are the smallest in magnitude",
    large="1 - gamma, share dropped because they are the largest",
    scale="alpha, the weight of the sum of deltas",
)
def breadcrumbs(deltas: Tensor, tensor, *, small=0.85, large=0.007, scale=0.3) -> Tensor:
    """Drop both tails of magnitude in each tensor of each delta, then task arithmetic."""
    if small < 0 or large < 0 or small + large >= 1:
        raise ValueError(f"breadcrumbs: small {small} and large {large} must be shares whose sum is below 1")
    flat = deltas.reshape(len(deltas), -1)
    size = flat.shape[1]
    order = flat.abs().argsort(dim=1)
    kept = order[:, round(small * size) : size - round(large * size)]
    masked = flat.new_zeros(flat.shape).scatter(1, kept, flat.gather(1, kept))
    return scale * masked.sum(0).view(deltas.shape[1:])
