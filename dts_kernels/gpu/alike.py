"""Whether tensors are like those of a call that was looked at in full, in one call into PyTorch.

A dozen questions about each operand cost the host more than a small layer's product.  PyTorch's compiler has a
comparison for the tensors that a program was made of: their classes, dispatch keys, dtypes, devices, whether they want
gradients, sizes and strides.  The keys are those that count where it is asked: a pending sign, zeros that were never
written, other layouts, gradients, inference mode, autocast, tracing, modes and transforms around the call all have
one.  Addresses, forward-mode derivatives and what is in memory are not looked at.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

Check = Callable[..., bool]


def alike(*tensors: Tensor) -> Check | None:
    """(as many tensors) -> whether they are like these, each another object; None where this PyTorch cannot tell.

    Strides of axes of one element do not count.
    """
    guards = _guards()
    check = None if guards is None else _check(guards, tensors)
    return check if check is not None and check(*tensors) else None


def _check(guards: Any, tensors: tuple[Tensor, ...]) -> Check:
    sizes: list[list[int]] = [list(t.shape) for t in tensors]
    strides = [[None if n == 1 else s for n, s in zip(t.shape, t.stride())] for t in tensors]
    check: Check = guards(*tensors, dynamic_dims_sizes=sizes, dynamic_dims_strides=strides).check
    return check


@cache
def _guards() -> Any:
    """PyTorch's class, tried once; None where it is missing or tells other things apart than it should."""
    try:
        from torch._C._dynamo.guards import TensorGuards
    except ImportError:
        return None
    with torch.inference_mode(False), torch.no_grad():
        one = torch.zeros(2, 1, 4)
        check = _check(TensorGuards, (one,))
        same = [torch.ones(2, 1, 4), torch.ones(2, 3, 4)[:, :1].contiguous(), torch.ones(2, 4)[:, None]]
        other = [one.half(), one[:1], torch.ones(2, 1, 8)[..., ::2], torch._neg_view(one), one.to("meta")]
        right = all(check(t) for t in same) and not any(check(t) for t in (*other, torch.nn.Parameter(one)))
    return TensorGuards if right else None
