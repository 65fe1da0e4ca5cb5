"""What all banks of a program use: bytes decoded by a table's rows, and each row's gammas."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dts_kernels import Routing
from dts_kernels.reference import decode


def wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def byte_table(levels: Tensor | None) -> Tensor:
    """The four values of each byte: float32 [256, 4].  levels: [4], the values of codes 0 to 3 (None: `VALUES`)."""
    every = torch.arange(256, dtype=torch.uint8)[:, None]
    return decode(every, 4, None if levels is None else levels.detach().cpu())


class Memo:
    """What was made for the routing used last."""

    routing: Routing | None = None
    gamma: Tensor | None = None


class Shared(nn.Module):
    """What all banks of a program use: the table of bytes, and each row's gammas, made once a call.

    slots: that tasks have, of the whole model.
    """

    bytes: Tensor

    def __init__(self, slots: int):
        super().__init__()
        self.slots = slots
        self.register_buffer("bytes", byte_table(None))
        self.memo = Memo()

    def gamma(self, routing: Routing) -> Tensor:
        """The weight of each slot: float32 [rows of the routing, slots]; those that no task has count for nothing."""
        memo = self.memo
        if memo.routing is not routing:
            each = routing.slots[:, :, None] == torch.arange(self.slots, dtype=torch.int32, device=routing.slots.device)
            memo.routing, memo.gamma = routing, (each.to(torch.float32) * routing.weights[:, :, None]).sum(1)
        assert memo.gamma is not None  # made with the routing
        return memo.gamma


def decoded(packed: Tensor, table: Tensor, dtype: torch.dtype) -> Tensor:
    """Bytes [..., bytes] to values [..., 4 bytes]: a look-up, which every run-time has, no shifts."""
    return nn.functional.embedding(packed.to(torch.int32), table).to(dtype).flatten(-2)
