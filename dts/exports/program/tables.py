"""Tables of plain PyTorch: biases, norms and heads of all tasks."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from dts.exports.program.shared import Shared, wide
from dts.nn.deltas import Table
from dts.nn.deltas.table import looked_up
from dts_kernels import Routing


class PlainTable(nn.Module):
    """A `Table` (biases, norms, heads) whose sums over a row's tasks are one product with the row's gammas."""

    stack: Tensor
    length: Tensor

    def __init__(self, table: Table, shared: Shared):
        super().__init__()
        self.shared, self.longest, self.device = shared, table.longest, table.device
        self.filled, self.size = True, table.size
        self.tensors = {slot: tensor.to("meta") for slot, tensor in table.tensors.items()}
        self.register_buffer("stack", table.stack.detach())
        self.register_buffer("length", table.length)

    @property
    def slots(self) -> Mapping[int, object]:
        """As a `Table`'s: those that have a tensor."""
        return self.tensors

    @property
    def source(self) -> Tensor:
        """As a `Table`'s: what rows choose from."""
        return self.stack

    @property
    def count(self) -> int:
        """As a `Table`'s: slots that the stack has a row for."""
        return self.stack.shape[0]

    def tensor(self, slot: int) -> Tensor:
        """As a `Table`'s: the slot's own, without the rows that longer ones have."""
        return self.stack[slot, : self.tensors[slot].shape[0]]

    @property
    def wide(self) -> Tensor:
        return self.stack.to(torch.float32)

    def _gamma(self, routing: Routing) -> Tensor:
        return self.shared.gamma(routing)[:, : self.stack.shape[0]]

    def rows(self, routing: Routing, dtype: torch.dtype) -> Tensor:
        flat = self.stack.to(wide(dtype)).flatten(1) if self.stack.dim() > 1 else self.stack.to(wide(dtype))[:, None]
        rows = self._gamma(routing).to(flat.dtype) @ flat
        return rows.view(rows.shape[0], *self.stack.shape[1:]).to(dtype)

    def added_to(self, base: Tensor, routing: Routing) -> Tensor:
        both = wide(torch.promote_types(base.dtype, self.stack.dtype))
        return (base.to(both) + self.rows(routing, both)).to(base.dtype)

    def lengths(self, routing: Routing) -> Tensor:
        return torch.where(self._gamma(routing) != 0, self.length, 0).amax(1)

    def looked_up(self, ids: Tensor, routing: Routing, dtype: torch.dtype) -> Tensor:
        return looked_up(self, ids, routing, dtype)

    def index(self, routing: Routing) -> tuple[Tensor, Tensor]:
        own = (routing.slots >= 0) & (routing.slots < self.stack.shape[0])
        return torch.where(own, routing.slots, 0).to(torch.int64), torch.where(own, routing.weights, 0.0)
