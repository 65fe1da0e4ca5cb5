"""Banks that each hold some rows of one matrix, for rows from all of them at once."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .bank import Bank


class EmbeddingParts:
    """Banks of one matrix [rows, n], no slot in two of them.

    banks: each with int32 [rows], the bank's row of every row of the matrix (-1: none), or None where it has all.
    columns: n, -1 without banks;  joined: whether one call of C can read them all: disk bytes on the CPU, no levels
    packed: whether they are banks of kernel words, all of them
    tasks: what `backends.cpu` makes of them when it first needs it;  chosen: `ops.run.choice` for each dtype of y
    """

    def __init__(self, banks: list[tuple[Bank, Tensor | None]], rows: int):
        self.banks, self.rows = banks, rows
        columns = {bank.in_features for bank, _ in banks}
        if len(columns) > 1:
            raise ValueError(f"banks of one matrix must have its columns, not {sorted(columns)}")
        self.columns = min(columns, default=-1)
        slots = [slot for bank, _ in banks for slot in bank.slots]
        self.joined = 0 < len(slots) == len(set(slots)) and all(
            bank.layout == "disk" and bank.device.type == "cpu" and not bank.has_levels for bank, _ in banks
        )
        self.packed = bool(banks) and all(bank.layout != "disk" for bank, _ in banks)
        self.tasks: Any = None
        self.chosen: dict[torch.dtype, tuple[tuple[str, str], Callable[..., Tensor]]] = {}


def row_in(lookup: Tensor | None, ids: Tensor) -> Tensor:
    """A bank's rows for those of the whole matrix: ids where it has all of them, else int64 with -1 for none."""
    return ids if lookup is None else torch.where(ids < 0, -1, lookup[ids.clamp(min=0).long()].long())
