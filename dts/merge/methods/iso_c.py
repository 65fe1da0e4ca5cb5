"""Iso-C: isotropic merging in the common subspace."""

import torch
from torch import Tensor

from ..registry import register
from ..tensor import each_matrix


@register("iso_c", "Marczak et al. 2025, arXiv 2502.04959", scale="alpha, the weight of the merged delta")
def iso_c(deltas: Tensor, tensor, *, scale=1.0) -> Tensor:
    """The sum of deltas with every singular value replaced by their mean; average what is no matrix."""
    return scale * each_matrix(_isotropic, deltas, tensor)


def _isotropic(deltas: Tensor) -> Tensor:
    u, s, vh = torch.linalg.svd(deltas.sum(0), full_matrices=False)
    return s.mean() * u @ vh
