"""A bank's packed factors as C reads them: where they lie, and the tensors that keep them there."""

import ctypes
from array import array
from struct import Struct
from typing import Any

import torch
from torch import Tensor

from .. import contents
from ..borrowed import BorrowedFactors, tensor_at
from ..layout import PackedFactors, packed_width


class Task(ctypes.Structure):
    """One task of a bank, where it lies: the struct of task.h."""

    _fields_ = (
        [(name, ctypes.c_void_p) for name in ("u", "v", "sigma", "levels")]
        + [(name, ctypes.c_int64) for name in ("u_stride", "v_stride", "rank")]
        + [("lookup", ctypes.c_void_p)]
        + [(name, ctypes.c_int64) for name in ("u_rows", "v_rows", "u_bytes", "v_bytes", "sigma_count", "lookup_count")]
    )


SIZE = ctypes.sizeof(Task)
FIELDS = SIZE // 8  # all of which have eight bytes
record = Struct("@4P3qP6q").pack


class Tasks:
    """All tasks of a bank as an array that C reads, and whose memory it points into.  Never changed: products of other
    threads may be reading it.

    parts: those that it was joined of, and what says where their rows are
    """

    parts: "tuple[tuple[Tasks, Tensor | None], ...]" = ()

    def __init__(self, packed: list[Tensor], table: Tensor):
        self._make(array("Q", bytes(SIZE * table.shape[0])), {})
        for slot, one in contents.of(packed, table).factors.items():
            self._set(slot, one)

    @classmethod
    def none(cls) -> "Tasks":
        made = cls.__new__(cls)
        made._make(array("Q"), {})
        return made

    def changed(self, slot: int, one: PackedFactors | None) -> "Tasks":
        """The same but for one slot, which has these factors, None: none."""
        made, kept = Tasks.__new__(Tasks), dict(self.kept)
        kept.pop(slot, None)
        count = max([-1, *kept]) + 1 if one is None else max(self.count, slot + 1)
        words = self.words[: FIELDS * count]
        if count > self.count:
            words.frombytes(bytes(SIZE * (count - self.count)))
        made._make(words, kept)
        made._set(slot, one)
        return made

    def _make(self, words: "array[int]", kept: dict[int, tuple[torch.UntypedStorage, ...]]) -> None:
        """words: of `Task`, of all slots;  kept: slot -> whose memory C reads."""
        self.words, self.kept = words, kept
        self.pointer, self.count = words.buffer_info()[0], len(words) // FIELDS

    @property
    def array(self) -> Any:
        """The tasks by slot, to read."""
        return (Task * self.count).from_buffer(self.words)

    def _set(self, slot: int, one: PackedFactors | None) -> None:
        if slot < self.count:
            record = bytes(SIZE) if one is None or not one.rank else self._record(slot, one)
            self.words[FIELDS * slot : FIELDS * (slot + 1)] = array("Q", record)

    def _record(self, slot: int, one: PackedFactors) -> bytes:
        rank = one.rank
        if isinstance(one, BorrowedFactors):
            (m, n), width = one.shape, packed_width(rank)
            self.kept[slot] = one.memory
            return record(one.u_at, one.v_at, one.sigma_at, 0, width, width, rank, 0, m, n, width, width, rank, 0)
        u, v = (t if t.stride(1) == 1 else t.contiguous() for t in (one.u, one.v))
        sigma, levels = one.sigma.contiguous(), None if one.levels is None else one.levels.contiguous()
        # their memory: whoever exchanges that of a tensor that was given does not take it from under C
        self.kept[slot] = tuple([t.untyped_storage() for t in (u, v, sigma, levels) if t is not None])
        return record(
            u.data_ptr(), v.data_ptr(), sigma.data_ptr(), 0 if levels is None else levels.data_ptr(),
            u.stride(0), v.stride(0), rank, 0, u.shape[0], v.shape[0], u.shape[1], v.shape[1], rank, 0,
        )  # fmt: skip

    def knows(self, slot: int) -> bool:
        """Whether `factors` makes those of a slot: components without levels."""
        return len(self.kept.get(slot, ())) in (2, 3)

    def factors(self, slot: int) -> PackedFactors:
        """What C reads, on the same memory.  Raises KeyError for a slot that has none."""
        kept = self.kept[slot]
        u_at, v_at, sigma_at, _, u_stride, v_stride, rank, _, m, n, u_bytes, v_bytes, *_ = self.words[
            FIELDS * slot : FIELDS * (slot + 1)
        ]
        if len(kept) == 2:
            return BorrowedFactors.at(kept, u_at, v_at, sigma_at, (m, n), rank)
        u, v, sigma = kept
        return PackedFactors(
            tensor_at(u, u_at, torch.uint8, (m, u_bytes), (u_stride, 1)),
            tensor_at(v, v_at, torch.uint8, (n, v_bytes), (v_stride, 1)),
            tensor_at(sigma, sigma_at, torch.float32, (rank,), (1,)),
        )

    def __reduce__(self):
        return type(None), ()  # pointers mean nothing in a copy of the table: it makes its own

    @classmethod
    def join(cls, parts: list[tuple["Tasks", Tensor | None]]) -> "Tasks":
        """Tasks of several banks with the same columns, no slot in two of them.

        Beside each bank int32 [rows of the whole matrix], which row of the bank that is, -1 for none; or None.
        """
        count = max([tasks.count for tasks, _ in parts], default=0)
        joined, places = cls.none(), (Task * count)()
        for tasks, at in parts:
            lookup = None if at is None else _checked_lookup(at)
            for slot, own in enumerate(tasks.array):
                if own.rank:
                    places[slot] = own
                    places[slot].lookup = None if lookup is None else lookup.data_ptr()
                    places[slot].lookup_count = 0 if lookup is None else lookup.numel()
            joined.parts += ((tasks, lookup),)
        joined._make(array("Q", bytes(places)), {})
        return joined

    @classmethod
    def of(cls, packed: list[Tensor], table: Tensor) -> "Tasks":
        """The array of a bank's table, made once a table."""
        held = getattr(table, contents.HELD, None)
        if held is None or held.given is not packed or held.tasks is None:  # not as the op has just seen it
            held = contents.of(packed, table)
            held.tasks = held.tasks or cls(packed, table)
        return held.tasks


def readable(factors: PackedFactors) -> bool:
    """Whether C finds the factors' numbers in memory as they are."""
    return isinstance(factors, BorrowedFactors) or all(
        [type(t) in (Tensor, torch.nn.Parameter) and t.is_cpu and contents.plain(t) for t in factors.tensors]
    )


def _checked_lookup(lookup: Tensor) -> Tensor:
    if lookup.dtype != torch.int32 or lookup.dim() != 1 or not lookup.is_cpu:
        raise ValueError(f"a lookup must be int32 [rows] on the CPU, not {lookup.dtype} {list(lookup.shape)}")
    return lookup.detach().contiguous()
