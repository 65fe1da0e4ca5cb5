"""Raw tensors (biases, norms, heads), one a task, stacked so that rows choose theirs by index."""

from __future__ import annotations

from functools import reduce

import torch
from torch import Tensor

from dts_kernels import Routing
from dts_kernels.bank import EAGER
from dts_kernels.ops import direct, task_rows


class Table:
    """Raw tensors of the tasks that have one, stacked by slot; sizes of dim 0 may differ, shorter ones end in zeros."""

    def __init__(self, device: torch.device | str = "cpu"):
        self.device = torch.device(device)
        self.tensors: dict[int, Tensor] = {}
        self._stack: Tensor | None
        self._length: Tensor | None
        self._wide: Tensor | None
        self._refresh()

    def add(self, slot: int, tensor: Tensor) -> None:
        before = dict(vars(self), tensors=dict(self.tensors))
        try:
            self.tensors[slot] = tensor.detach().to(self.device)
            self._refresh()
        except BaseException:  # no memory, or sizes that do not stack: as it was
            vars(self).update(before)
            raise

    def remove(self, slot: int) -> None:
        self.tensors.pop(slot, None)
        self._refresh()

    def to(self, device: torch.device | str) -> None:
        self.device = torch.device(device)
        self.tensors = {slot: tensor.to(device) for slot, tensor in self.tensors.items()}
        self._refresh()

    def _refresh(self) -> None:
        """Make the stack again; beyond EAGER tasks on the CPU when first needed, see `Bank`."""
        self._wide = self._stack = self._length = None
        self.longest = max((t.shape[0] if t.dim() else 1 for t in self.tensors.values()), default=0)
        if self.tensors and (self.device.type != "cpu" or len(self.tensors) <= EAGER):
            self._make()

    @property
    def stack(self) -> Tensor:
        """[slots, longest, ...]; there must be tensors."""
        return self._make()[0] if self._stack is None else self._stack

    @property
    def length(self) -> Tensor:
        """int64 [slots], 0 = this slot has none; there must be tensors."""
        return self._make()[1] if self._length is None else self._length

    def _make(self) -> tuple[Tensor, Tensor]:
        """The stack and the lengths."""
        first = next(iter(self.tensors.values()))
        shape = (max(self.tensors) + 1, self.longest, *first.shape[1:]) if first.dim() else (max(self.tensors) + 1,)
        dtype = reduce(torch.promote_types, [t.dtype for t in self.tensors.values()])
        self._stack = stack = torch.zeros(shape, dtype=dtype, device=self.device)
        self._length = length = torch.zeros(shape[0], dtype=torch.int64, device=self.device)
        for slot, tensor in list(self.tensors.items()):
            if tensor.dim():
                stack[slot, : tensor.shape[0]] = tensor
                self.tensors[slot] = stack[slot, : tensor.shape[0]]  # a view: the stack is the only copy
            else:
                stack[slot] = tensor
            length[slot] = self.longest if not tensor.dim() else tensor.shape[0]
        return stack, length

    @property
    def wide(self) -> Tensor:
        """The stack in float32, as kernels add it."""
        if self._wide is None:
            self._wide = self.stack.to(torch.float32)
        return self._wide

    def rows(self, routing: Routing, dtype: torch.dtype) -> Tensor:
        """Sum of gamma * tensor over the tasks of each row of the routing: dtype [R, longest, ...].

        Not to be written into.
        """
        if self._here(routing):
            # on a CPU, where a norm needs less time than the operations below: one task's row as it lies there
            slots, weights = routing.slots[0].tolist(), routing.weights[0].tolist()
            used = [(s, w) for s, w in zip(slots, weights) if s in self.tensors]
            if len(used) == 1:
                row = self.stack[used[0][0] : used[0][0] + 1].to(dtype)
                return row if used[0][1] == 1 else row * used[0][1]
        return task_rows(self.stack, routing, dtype)

    def added_to(self, base: Tensor, routing: Routing) -> Tensor:
        """base [longest, ...] + `rows`, rounded once: [R, longest, ...] in base's dtype."""
        if self._here(routing):
            wide = torch.promote_types(base.dtype, self.stack.dtype)
            return (base.to(wide) + self.rows(routing, wide)).to(base.dtype)
        return task_rows(self.stack, routing, base.dtype, base)

    def _here(self, routing: Routing) -> bool:
        """Whether a routing of one row may be read on the host."""
        slots = routing.slots
        return slots.shape[0] == 1 and slots.is_cpu and direct(slots, routing.weights, self.stack)

    def lengths(self, routing: Routing) -> Tensor:
        """int64 [R]: rows of the tensor for each row of the routing, 0 where its tasks have none."""
        index, gamma = self.index(routing)
        return torch.where(gamma != 0, self.length[index], 0).amax(1)

    def index(self, routing: Routing) -> tuple[Tensor, Tensor]:
        """Rows of the stack and their gammas; a slot without a tensor has a row of zeros or is beyond the stack."""
        index = routing.slots.clamp(0, self.stack.shape[0] - 1)
        return index, torch.where(index == routing.slots, routing.weights, 0.0)
