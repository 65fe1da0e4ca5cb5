"""Components rounded one after the other in the compiled library, for the codec."""

import torch
from torch import Tensor

from . import native
from .load import loaded, named


def usable(factor: Tensor) -> bool:
    """Whether `round_components` takes a factor: float32 on a CPU, without gaps, and the library is there."""
    return factor.is_cpu and factor.dtype is torch.float32 and factor.is_contiguous() and bool(native.variant())


def round_components(factor: Tensor, misfit: Tensor, weights: Tensor, step: Tensor, name: str | None = None) -> None:
    """For k = 0, 1, ...: factor[k] becomes the nearest of +1, +4, -1, -4 to factor[k] + step[k] misfit[k], in place;
    what it changes by, times weights[j, k], is added to misfit[j] of every later j.

    float32 [k, m], [k, m] (lost), [k, k] and [k], rows without gaps.  The same bits with every instruction set.
    """
    count, columns = factor.shape
    if misfit.shape != factor.shape or weights.shape != (count, count) or step.shape != (count,):
        raise ValueError(
            f"components {list(factor.shape)} take a misfit as large, weights [{count}, {count}] and steps [{count}], "
            f"not {list(misfit.shape)}, {list(weights.shape)} and {list(step.shape)}"
        )
    tensors = (factor, misfit, weights, step)
    if any(t.dtype is not torch.float32 or not t.is_cpu or t.numel() and t.stride(-1) != 1 for t in tensors):
        raise ValueError("components are rounded in float32 on a CPU, rows without gaps")
    record = [number for t in tensors[:3] for number in (t.data_ptr(), _reach(t), t.stride(0))]
    code = loaded().dts_round_components(named(name), *record, step.data_ptr(), step.numel(), count, columns)
    native.check(code, "round_components")


def _reach(t: Tensor) -> int:
    """Numbers from the first to the last of a matrix."""
    return (t.shape[0] - 1) * t.stride(0) + t.shape[1] if t.numel() else 0
