"""Tensors that lie on several processes (`DTensor`)."""

from __future__ import annotations

import sys
from typing import Any

from torch import Tensor


def is_distributed(tensor: object) -> bool:
    """Whether it is a `DTensor`; the module that has them is not imported to know it."""
    loaded: Any = sys.modules.get("torch.distributed.tensor")
    return loaded is not None and isinstance(tensor, getattr(loaded, "DTensor", ()))


def local(tensor: Tensor) -> Tensor:
    """What this process has of a tensor; the tensor itself if that is no `DTensor`.  Detached."""
    found: Any = tensor
    return found._local_tensor if is_distributed(tensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor: processes that have parts of it send them, so each of them has to ask."""
    found: Any = tensor
    return found.full_tensor() if is_distributed(tensor) else tensor
