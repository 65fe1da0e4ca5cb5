"""KnOTS: merge in the singular basis that all tasks share."""

import torch
from torch import Tensor

from ..registry import register
from ..tensor import each_matrix
from .ties import disjoint_mean, local_thresholds, trim


@register(
    "knots",
    "Stoica et al. 2025, arXiv 2410.19735",
    density="share of each task's aligned entries kept before the sign election of TIES",
    scale="weight of the merged delta",
)
def knots(deltas: Tensor, tensor, *, density=0.2, scale=1.0) -> Tensor:
    """SVD of [tau_1 ... tau_N] = U S [V_1 ... V_N]^T, TIES over the aligned S V_i^T, back through U.

    Any tensor that is no matrix is averaged.
    """
    return scale * each_matrix(lambda d: _knots(d, density), deltas, tensor)


def _knots(deltas: Tensor, density: float) -> Tensor:
    models, _, n = deltas.shape
    u, s, vh = torch.linalg.svd(torch.cat(list(deltas), dim=1), full_matrices=False)
    aligned = (s[:, None] * vh).view(len(s), models, n).transpose(0, 1)  # [N, rank, n]
    return u @ disjoint_mean(trim(aligned, local_thresholds(aligned, density)))
