"""TSV-Merge: the leading singular vectors of every task, made orthogonal to each other."""

import torch
from torch import Tensor

from ..registry import register
from ..tensor import each_matrix


@register(
    "tsv_merge",
    "Gargiulo et al. 2025, arXiv 2412.00081",
    keep="share of each task's components kept; None: 1 / number of models, as published",
    scale="alpha, the weight of the merged delta",
)
def tsv_merge(deltas: Tensor, tensor, *, keep=None, scale=1.0) -> Tensor:
    """Concatenate each task's leading components and whiten U and V across tasks; average what is no matrix."""
    return scale * each_matrix(lambda d: _tsv(d, 1 / len(d) if keep is None else keep), deltas, tensor)


def _tsv(deltas: Tensor, keep: float) -> Tensor:
    u, s, vh = torch.linalg.svd(deltas, full_matrices=False)
    kept = max(1, int(keep * s.shape[1] + 1e-9))
    u = u[:, :, :kept].transpose(0, 1).flatten(1)  # [m, N kept]
    v = vh[:, :kept].flatten(0, 1).T  # [n, N kept]
    return nearest_orthonormal(u) * s[:, :kept].flatten() @ nearest_orthonormal(v).T


def nearest_orthonormal(a: Tensor) -> Tensor:
    """P Q^T of the SVD P D Q^T of a [rows, columns]: orthonormal columns (rows, where they are fewer)."""
    p, _, qh = torch.linalg.svd(a, full_matrices=False)
    return p @ qh
