"""Raw tensors, one a task: what rows of a batch take of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dts.nn.deltas.held import as_op, in_program
from dts.nn.deltas.per_task import per_task_product
from dts.nn.deltas.stack import Stack
from dts.nn.routing import ConstantRouting, beside
from dts_kernels import Routing
from dts_kernels.ops import direct, task_rows, vectors_here
from dts_kernels.recorded import recorded
from dts_kernels.rounded import RoundedVectors, if_tensor

KEPT = 1 << 16  # numbers of a table that stay with a routing, or of a row that stays, at most


class Table(Stack):
    """A `Stack` from which each row of a routing takes the sum of its tasks' tensors."""

    def __init__(self, device: torch.device | str = "cpu", stays: bool = False):
        self._last: tuple[int, int, Tensor | None] = (0, -1, None)  # version, slot and numbers of `_decoded`
        super().__init__(device, stays)

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"_last": (0, -1, None)}

    def rows(self, routing: Routing, dtype: torch.dtype) -> Tensor:
        """Sum of gamma * tensor over the tasks of each row of the routing: dtype [R, longest, ...].

        Not to be written into.
        """
        if in_program(routing.slots):
            return as_op(self, "_rows_in_program", [], routing, (routing.slots.shape[0], *self.size), dtype)
        return self._rows_here(routing, dtype) if self._here(routing) else task_rows(self.source, routing, dtype)

    def _rows_here(self, routing: Routing, dtype: torch.dtype) -> Tensor:
        """On a CPU, where a norm takes less time than what `task_rows` does: once for a routing that is constant."""
        if not isinstance(routing, ConstantRouting):
            return self._gathered(routing, dtype)
        version, rows = routing.made.get((self, dtype), (None, None))
        if rows is None or version != self.version:
            with torch.inference_mode(False):  # whoever is next may need gradients beside it
                rows = self._gathered(routing, dtype)
            if rows.numel() <= KEPT:
                routing.made[self, dtype] = self.version, rows
        return rows

    def _gathered(self, routing: Routing, dtype: torch.dtype) -> Tensor:
        """The row of one task as it lies there, else `task_rows`."""
        if routing.slots.shape[0] > 1:
            return task_rows(self.source, routing, dtype)
        slots, weights = routing.slots[0].tolist(), routing.weights[0].tolist()
        used = [(s, w) for s, w in zip(slots, weights) if s in self._own]
        if len(used) != 1:
            return task_rows(self.source, routing, dtype)
        slot, weight = used[0]
        row = (self.stack[slot : slot + 1] if self._few is None else self._decoded(self._few, slot)).to(dtype)
        return row if weight == 1 else row * weight

    def _decoded(self, few: RoundedVectors, slot: int) -> Tensor:
        """float32 [1, n] of one slot.  That of the last call stays, for calls of one task again and again: to decode it
        anew takes a norm of a few rows a tenth of its time."""
        version, last, row = self._last
        if last != slot or version != self.version or row is None:
            if recorded():
                return few.row(slot)
            with torch.inference_mode(False):  # whoever is next may need gradients beside it
                row = few.row(slot)
            if row.numel() <= KEPT:
                self._last = self.version, slot, row
        return row

    def _rows_in_program(self, routing: Routing, dtype: torch.dtype) -> Tensor:
        return self.rows(routing, dtype).clone()

    def added_to(self, base: Tensor, routing: Routing) -> Tensor:
        """base [longest, ...] + `rows`, rounded once: [R, longest, ...] in base's dtype."""
        if in_program(routing.slots):
            return as_op(self, "_added_in_program", [base], routing, (routing.slots.shape[0], *base.shape), base.dtype)
        if (made := self._added_in_c(base, routing)) is not None:
            return made
        if self._here(routing):
            wide = torch.promote_types(base.dtype, self.source.dtype)
            return (base.to(wide) + self._rows_here(routing, wide)).to(base.dtype)
        return task_rows(self.source, routing, base.dtype, base)

    def _added_in_c(self, base: Tensor, routing: Routing) -> Tensor | None:
        """The same of vectors in few bits, of one task a row, decoded where they are added; None for all else."""
        few = self.source
        if isinstance(few, Tensor) or routing.slots.shape[1] != 1 or isinstance(routing, ConstantRouting):
            return None
        if base.dtype == torch.float64:
            return None
        if routing.slots.shape[0] == 1 and self._here(routing) and routing.weights.item() == 1:
            if (slot := int(routing.slots)) in self._own:
                return (base + self._decoded(few, slot)).to(base.dtype)
        made = vectors_here([(base.to(torch.float32), few)], routing)
        return None if made is None else made[0].to(base.dtype)

    def _added_in_program(self, base: Tensor, routing: Routing, dtype: torch.dtype) -> Tensor:
        return self.added_to(base, routing)

    def _here(self, routing: Routing) -> bool:
        """Whether a routing of one row, or one that is constant, may be read on the host."""
        slots = routing.slots
        once = slots.shape[0] == 1 or isinstance(routing, ConstantRouting)
        return once and slots.is_cpu and direct(slots, routing.weights, if_tensor(self.source))

    def lengths(self, routing: Routing) -> Tensor:
        """int64 [R]: rows of the tensor for each row of the routing, 0 where its tasks have none."""
        if in_program(routing.slots):
            return as_op(self, "_lengths_in_program", [], routing, routing.slots.shape[:1], torch.int64)
        index, gamma = self.index(routing)
        return torch.where(gamma != 0, self.length[index], 0).amax(1)

    def _lengths_in_program(self, routing: Routing, dtype: torch.dtype) -> Tensor:
        return self.lengths(routing)

    def looked_up(self, ids: Tensor, routing: Routing, dtype: torch.dtype) -> Tensor:
        """Rows ``ids`` (int64 [batch, ...]) of each batch row's tensors [longest, n]: [batch, ..., n]."""
        if in_program(ids):
            return as_op(self, "_looked_up_in_program", [ids], routing, (*ids.shape, *self.size[1:]), dtype)
        return looked_up(self, ids, routing, dtype)

    def _looked_up_in_program(self, ids: Tensor, routing: Routing, dtype: torch.dtype) -> Tensor:
        return self.looked_up(ids, routing, dtype)

    def _product_in_program(self, x: Tensor, routing: Routing, dtype: torch.dtype) -> Tensor:
        return per_task_product(x, self, routing)

    def _transposed_product_in_program(self, x: Tensor, routing: Routing, dtype: torch.dtype) -> Tensor:
        return per_task_product(x, self, routing, transposed=True)


def looked_up(table: Any, ids: Tensor, routing: Routing, dtype: torch.dtype) -> Tensor:
    """`Table.looked_up`, of whatever has a stack and an index."""
    index, gamma = table.index(routing)
    total: Any = sum(
        table.stack[beside(ids, index[:, p]), ids].to(dtype) * beside(ids, gamma[:, p].to(dtype))[..., None]
        for p in range(index.shape[1])
    )
    return total
