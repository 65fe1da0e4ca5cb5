"""TIES: trim, elect a sign, disjoint mean."""

import torch
from torch import Tensor

from ..quantile import stream_thresholds
from ..registry import register


def trim(deltas: Tensor, thresholds) -> Tensor:
    """Set entries of model i whose magnitude is below thresholds[i] to zero."""
    limits = torch.as_tensor(thresholds, dtype=deltas.dtype).view(-1, *[1] * (deltas.dim() - 1))
    return deltas.where(deltas.abs() >= limits, 0)


def local_thresholds(deltas: Tensor, density: float) -> list[float]:
    """Per model, the magnitude of the last of the round(density * size) largest entries of this tensor."""
    flat = deltas.reshape(len(deltas), -1).abs()
    keep = max(1, min(flat.shape[1], round(density * flat.shape[1])))
    return flat.kthvalue(flat.shape[1] - keep + 1, dim=1).values.tolist()


def disjoint_mean(deltas: Tensor) -> Tensor:
    """Per entry, the mean over the models whose sign is that of the sum; zero where the sum is zero."""
    agree = deltas.sign() == deltas.sum(0).sign()
    agree &= deltas != 0
    return deltas.where(agree, 0).sum(0) / agree.sum(0).clamp(min=1)


def _thresholds(stream, *, density, scale, scope) -> dict:
    if scope not in ("model", "tensor"):
        raise ValueError(f"ties: scope is 'model' or 'tensor', not {scope!r}")
    if not 0 < density <= 1:
        raise ValueError(f"ties: density must be above 0 and at most 1, not {density}")
    return {"thresholds": stream_thresholds(stream, density)} if scope == "model" and density < 1 else {}


@register(
    "ties",
    "Yadav et al. 2023, arXiv 2306.01708",
    prepare=_thresholds,
    density="share of each model's entries kept, the largest in magnitude",
    scale="lambda, the weight of the merged delta",
    scope="'model': the largest of the whole model, as published (two more passes over the files); 'tensor'",
)
def ties(deltas: Tensor, tensor, *, density=0.2, scale=1.0, scope="model") -> Tensor:
    """Keep each delta's largest entries, elect each entry's sign by the sum, average those that agree."""
    thresholds = tensor.prepared.get("thresholds")
    if thresholds is None:
        thresholds = local_thresholds(deltas, density)
    return scale * disjoint_mean(trim(deltas, thresholds))
