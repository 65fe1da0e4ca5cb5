"""Which tasks each row of a batch uses, and the one product that is nothing but a choice: a task's addend."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Routing:
    """Which tasks each row of a batch uses, and how much of each.

    slots: int32 [R, P], a bank's slot or -1 for none; weights: float32 [R, P], the gammas.
    R is 1 (the same for every row) or the batch size; an input of ``rows`` rows, a multiple of R
    (tokens flattened batch-major), follows entry i // (rows / R) in its row i.
    Both are tensors of fixed shape: another task is other contents, never another program.
    """

    slots: Tensor
    weights: Tensor

    def __post_init__(self):
        if self.slots.dim() != 2 or self.slots.shape != self.weights.shape:
            raise ValueError(
                f"routing needs slots and weights of one shape [rows, places], "
                f"not {list(self.slots.shape)} and {list(self.weights.shape)}"
            )
        if self.slots.dtype != torch.int32 or self.weights.dtype != torch.float32:
            raise TypeError(
                f"routing needs int32 slots and float32 weights, not {self.slots.dtype} and {self.weights.dtype}"
            )

    @classmethod
    def of(cls, entries, device="cpu") -> "Routing":
        """From one item a row: a slot, None, or a mixture {slot: weight}."""
        mixtures = [e if isinstance(e, dict) else {} if e is None else {e: 1.0} for e in entries]
        places = max([len(m) for m in mixtures] + [1])
        slots = [list(m) + [-1] * (places - len(m)) for m in mixtures]
        weights = [list(m.values()) + [0.0] * (places - len(m)) for m in mixtures]
        return cls(
            torch.tensor(slots, dtype=torch.int32, device=device).reshape(-1, places),
            torch.tensor(weights, dtype=torch.float32, device=device).reshape(-1, places),
        )

    def to(self, device) -> "Routing":
        return Routing(self.slots.to(device), self.weights.to(device))


def add_rows(y: Tensor, adds: Any, routing: Routing) -> Tensor:
    """y + each row's sum of gamma adds[slot]; a slot beyond the table adds nothing.

    y: [..., m]; adds: [slots, m], see `rounded.Addends`.
    """
    if not adds.shape[0]:
        return y.clone()
    rows = task_rows(adds, routing, y.dtype)
    if rows.shape[0] <= 1:
        return y + rows.sum(0)
    each = y.shape[:-1].numel() // rows.shape[0]
    return (y.reshape(rows.shape[0], each, rows.shape[1]) + rows[:, None]).view(y.shape)


def task_rows(stack: Any, routing: Routing, dtype: torch.dtype) -> Tensor:
    """Each entry's sum of gamma stack[slot], [R, ...] in ``dtype``; stack: [slots, ...], see `rounded.Addends`."""
    index = routing.slots.clamp(0, stack.shape[0] - 1)
    gamma = torch.where(index == routing.slots, routing.weights, 0.0)
    chosen: Tensor = stack[index]
    return (chosen.to(dtype) * gamma.to(dtype).view(*index.shape, *[1] * (stack.dim() - 1))).sum(1)
