"""Fisher merging with what a delta itself says about importance."""

from torch import Tensor

from ..registry import register


@register(
    "fisher",
    "Matena and Raffel 2022, arXiv 2111.09832 (their formula; the proxy for the Fisher is ours)",
    power="p of the importance |tau|^p; 0 is the average",
    scale="weight of the merged delta",
)
def fisher(deltas: Tensor, tensor, *, power=2.0, scale=1.0) -> Tensor:
    """sum_i F_i theta_i / sum_i F_i with F_i = |tau_i|^p: no data, an entry that moved far counts as important."""
    size = deltas.abs().amax(0).clamp(min=1e-38)  # the ratio to the largest neither over- nor underflows
    importance = (deltas.abs() / size) ** power
    return scale * (importance * deltas).sum(0) / importance.sum(0).clamp(min=1e-38)
