"""Task arithmetic."""

from torch import Tensor

from ..registry import register


@register("task_arithmetic", "Ilharco et al. 2023, arXiv 2212.04089", scale="lambda, the weight of the sum of deltas")
def task_arithmetic(deltas: Tensor, tensor, *, scale=0.3) -> Tensor:
    """theta_m = theta_0 + lambda sum_i tau_i."""
    return scale * deltas.sum(0)
