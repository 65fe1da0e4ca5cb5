"""A base for difference adapters: the mean of what low-rank adapters leave out."""

import torch
from torch import Tensor

from ..registry import register
from ..tensor import each_matrix


@register(
    "remainder",
    "this project's, for difference adapters (DTS-D) of arXiv 2512.01461; no model to use by itself",
    keep="share of each task's components left to its adapter (the default suits adapters of about 1 %)",
)
def remainder(deltas: Tensor, tensor, *, keep=0.1) -> Tensor:
    """The mean of each delta without its leading components: the base whose differences are the nearest to low rank.

    With [tau]_k the best rank-k part of tau and r_i = tau_i - [tau_i]_k, theta_m = theta_0 + mean_i r_i. The rank-k
    approximation of tau_i - mean r can only be better than [tau_i]_k itself, so

        sum_i ||tau_i - mean r - [tau_i - mean r]_k||^2  <=  sum_i ||r_i||^2 - N ||mean r||^2

    whatever the tasks are; for tails orthogonal to each other a share 1 / N of the error goes. Average what is no
    matrix.
    """
    if not 0 <= keep <= 1:
        raise ValueError(f"remainder: keep must be from 0 to 1, not {keep}")
    return each_matrix(lambda d: _tails(d, keep).mean(0), deltas, tensor)


def _tails(deltas: Tensor, keep: float) -> Tensor:
    u, s, vh = torch.linalg.svd(deltas, full_matrices=False)
    kept = round(keep * s.shape[1])
    return (u[:, :, kept:] * s[:, None, kept:]) @ vh[:, kept:]
