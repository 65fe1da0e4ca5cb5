"""A bank's packed factors as C reads them: where they lie, and the tensors that keep them there."""

import ctypes
from typing import Any

import torch
from torch import Tensor

from .. import contents
from ..layout import PackedFactors


class Task(ctypes.Structure):
    """One task of a bank, where it lies: the struct of task.h."""

    _fields_ = (
        [(name, ctypes.c_void_p) for name in ("u", "v", "sigma", "levels")]
        + [(name, ctypes.c_int64) for name in ("u_stride", "v_stride", "rank")]
        + [("lookup", ctypes.c_void_p)]
        + [(name, ctypes.c_int64) for name in ("u_rows", "v_rows", "u_bytes", "v_bytes", "sigma_count", "lookup_count")]
    )


class Tasks:
    """All tasks of a bank as an array that C reads, and the tensors it points into."""

    def __init__(self, packed: list[Tensor], table: Tensor):
        held = contents.of(packed, table)
        older = held.older  # another thread may take it away meanwhile
        self._make(table.shape[0], older)
        for slot in held.factors if older is None else older[1]:
            self._set(slot, held.factors.get(slot))

    def _make(self, count: int, older: tuple["Tasks", frozenset[int]] | None = None) -> None:
        """Empty, or what there was before."""
        self.count = count
        self.array = (Task * max(count, 1))()
        self.kept: dict[int, tuple[Any, ...]] = {}  # slot -> whose memory C reads
        self.pointer = ctypes.addressof(self.array)
        if older is not None:
            before = older[0]
            ctypes.memmove(self.array, before.array, min(count, before.count) * ctypes.sizeof(Task))
            self.kept = dict(before.kept)

    def _set(self, slot: int, one: PackedFactors | None) -> None:
        self.kept.pop(slot, None)
        if slot >= self.count:
            return
        if one is None or not one.rank:
            self.array[slot] = Task()
            return
        task = self.array[slot]
        factors = [t if t.stride(1) == 1 else t.contiguous() for t in (one.u, one.v)]
        numbers = [None if t is None else t.contiguous() for t in (one.sigma, one.levels)]
        # their memory: whoever exchanges that of a tensor that was given does not take it from under C
        self.kept[slot] = tuple([t.untyped_storage() for t in (*factors, *numbers) if t is not None])
        task.u, task.v = (t.data_ptr() for t in factors)
        task.u_stride, task.v_stride = (t.stride(0) for t in factors)
        (task.u_rows, task.u_bytes), (task.v_rows, task.v_bytes) = (t.shape for t in factors)
        task.sigma, task.levels = (None if t is None else t.data_ptr() for t in numbers)
        task.rank = task.sigma_count = one.rank

    def __reduce__(self):
        return type(None), ()  # pointers mean nothing in a copy of the table: it makes its own

    @classmethod
    def join(cls, parts: list[tuple["Tasks", Tensor | None]]) -> "Tasks":
        """Tasks of several banks with the same columns, no slot in two of them.

        Beside each bank int32 [rows of the whole matrix], which row of the bank that is, -1 for none; or None.
        """
        joined = cls.__new__(cls)
        joined._make(max([tasks.count for tasks, _ in parts], default=0))
        for place, (tasks, lookup) in enumerate(parts):
            lookup = None if lookup is None else _checked_lookup(lookup)
            for slot in range(tasks.count):
                if tasks.array[slot].rank:
                    joined.array[slot] = tasks.array[slot]
                    joined.array[slot].lookup = None if lookup is None else lookup.data_ptr()
                    joined.array[slot].lookup_count = 0 if lookup is None else lookup.numel()
            joined.kept[-1 - place] = tasks, lookup  # of no slot alone
        return joined

    @classmethod
    def of(cls, packed: list[Tensor], table: Tensor) -> "Tasks":
        """The array of a bank's table, made once a table."""
        held = getattr(table, contents.HELD, None)
        if held is None or held.given is not packed or held.tasks is None:  # not as the op has just seen it
            held = contents.of(packed, table)
            held.tasks = held.tasks or cls(packed, table)
            held.older = None
        return held.tasks


def _checked_lookup(lookup: Tensor) -> Tensor:
    if lookup.dtype != torch.int32 or lookup.dim() != 1 or not lookup.is_cpu:
        raise ValueError(f"a lookup must be int32 [rows] on the CPU, not {lookup.dtype} {list(lookup.shape)}")
    return lookup.detach().contiguous()
