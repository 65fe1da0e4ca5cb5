"""RegMean with the delta's own Gram matrix in place of the inputs'."""

import torch
from torch import Tensor

from dts.sums import norm

from ..registry import register
from ..tensor import each_matrix


@register(
    "regmean",
    "Jin et al. 2023, arXiv 2212.09849; Gram matrices of deltas: Cheng et al. 2025, arXiv 2503.08099",
    off_diagonal="alpha, what off-diagonal entries of the Gram matrices are multiplied by",
    scale="weight of the merged delta",
)
def regmean(deltas: Tensor, tensor, *, off_diagonal=0.9, scale=1.0) -> Tensor:
    """Least squares over each model's outputs, with inputs guessed from deltas: (sum tau_i G_i) (sum G_i)^-1.

    A delta is a sum of outer products of output gradients and inputs, so its row space is that of the inputs:
    G_i = tau_i^T tau_i / ||tau_i||_F^2. Any tensor that is no matrix is averaged.
    """
    return scale * each_matrix(lambda d: _regmean(d, off_diagonal), deltas, tensor)


def _regmean(deltas: Tensor, off_diagonal: float) -> Tensor:
    norms = torch.tensor([norm(delta) for delta in deltas], dtype=torch.float64)
    if not norms.any():
        return deltas[0]
    wide = deltas.double() / norms.clamp(min=1e-300)[:, None, None]
    grams = wide.mT @ wide  # [N, n, n]
    diagonals = torch.diag_embed(grams.diagonal(dim1=-2, dim2=-1))
    grams = off_diagonal * grams + (1 - off_diagonal) * diagonals
    # columns no model changed have zero in the Gram matrix; a tiny ridge keeps them at the base
    ridge = 1e-9 * grams.sum(0).diagonal().mean()
    total = grams.sum(0) + ridge * torch.eye(grams.shape[-1], dtype=grams.dtype)
    return torch.linalg.solve(total, (deltas.double() @ grams).sum(0), left=False).to(deltas.dtype)
