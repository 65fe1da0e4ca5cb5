"""Vectors of tasks in the few bits that they have on disk: what tasks add to biases and norms, on a CPU.

As float32 numbers they would take as much memory as a tenth of all else that a task has.
"""

from __future__ import annotations

import contextlib
import struct
from array import array
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from . import reference
from .borrowed import tensor_at
from .cpu.load import loaded, name_of, variants
from .cpu.native import check
from .layout import alone
from .recorded import recorded

SHARED = 64  # numbers of a scale
BITS = (3, 4, 8)
FLOATS = 32  # in place of codes' bits: float32 numbers
ALL = 8  # slots: of so many it takes less time to have all than to find out which are used
_record = struct.Struct("@PP2q").pack  # as in rounded.h
_rows_record = struct.Struct("@PPqP2qPq").pack  # as in dts.h
_cpu = torch.device("cpu")
_c: Any = torch._C
_WORDS = 4


def readable() -> bool:
    """Whether there is C to read them."""
    return bool(variants())


@contextlib.contextmanager
def _unrecorded() -> Iterator[None]:
    """What is made here is a constant to them, which they may keep: C that writes numbers is nothing they see."""
    before = torch._C._get_tracing_state()
    _c._set_tracing_state(None)
    try:
        with contextlib.ExitStack() as left:
            if torch._C._functorch.peek_interpreter_stack() is not None:  # what is made within has no memory either
                from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack

                left.enter_context(temporarily_clear_interpreter_stack())
            left.enter_context(_disable_current_modes())
            left.enter_context(torch.inference_mode(False))
            yield
    finally:
        _c._set_tracing_state(before)


class RoundedVector:
    """n numbers: codes of ``bits`` bits each, two's complement, from the lowest bit of the first byte on, times a scale
    that `SHARED` numbers have in common.

    memory: what they lie in, which lives as long as this;  codes_at, scales_at: addresses.
    """

    __slots__ = ("bits", "codes_at", "count", "memory", "scales_at")

    def __init__(
        self, memory: tuple[torch.UntypedStorage, ...], codes_at: int, scales_at: int, bits: int, count: int
    ) -> None:
        self.memory, self.codes_at, self.scales_at, self.bits, self.count = memory, codes_at, scales_at, bits, count

    @classmethod
    def of(cls, codes: Tensor, scales: Tensor, bits: int, count: int) -> RoundedVector:
        """codes: uint8 [ceil(bits count / 8)];  scales: bfloat16 [ceil(count / SHARED)], both on a CPU."""
        sizes = (-(-bits * count // 8),), (-(-count // SHARED),)
        if (codes.dtype, scales.dtype) != (torch.uint8, torch.bfloat16) or (codes.shape, scales.shape) != sizes:
            raise ValueError(
                f"codes {list(codes.shape)} {codes.dtype} and scales {list(scales.shape)} {scales.dtype} are not those "
                f"of {count} numbers in {bits} bits"
            )
        if bits not in BITS or not (codes.is_cpu and scales.is_cpu):
            raise ValueError(f"numbers have {', '.join(map(str, BITS))} bits, on a CPU, not {bits} on {codes.device}")
        codes, scales = codes.contiguous(), scales.contiguous()
        memory = codes.untyped_storage(), scales.untyped_storage()
        return cls(memory, codes.data_ptr(), scales.data_ptr(), bits, count)

    @classmethod
    def floats(cls, numbers: Tensor) -> RoundedVector:
        """float32 [n] on a CPU as they are."""
        numbers = numbers.contiguous()
        return cls((numbers.untyped_storage(),), numbers.data_ptr(), 0, FLOATS, numbers.numel())

    def tensors(self) -> list[Tensor]:
        """What they lie in: (codes, scales), or the numbers."""
        if self.bits == FLOATS:
            return [tensor_at(self.memory[0], self.codes_at, torch.float32, (self.count,), (1,))]
        return [
            tensor_at(self.memory[0], self.codes_at, torch.uint8, (-(-self.bits * self.count // 8),), (1,)),
            tensor_at(self.memory[1], self.scales_at, torch.bfloat16, (-(-self.count // SHARED),), (1,)),
        ]

    def values(self) -> Tensor:
        """float32 [n], in memory of their own."""
        return RoundedVectors.none(self.count).changed(0, self).vector(0)

    def __reduce__(self) -> Any:
        """Without what else is in their memory, as of `PackedFactors`."""
        own = tuple(alone(tensor) for tensor in self.tensors())
        return (RoundedVector.floats, own) if self.bits == FLOATS else (RoundedVector.of, (*own, self.bits, self.count))


class RoundedVectors:
    """A vector of n numbers for each of some slots, as C reads them.  Never changed: other threads may be reading it.

    In place of a float32 tensor [count, n] that has zeros where a slot has none: it is indexed as that is.
    """

    dtype, is_cpu = torch.float32, True

    def __init__(self, words: array[int], kept: dict[int, tuple[torch.UntypedStorage, ...]], n: int):
        """words: a record a slot;  kept: slot -> whose memory C reads."""
        self.words, self.kept, self.n = words, kept, n
        self.pointer, self.count = words.buffer_info()[0], len(words) // _WORDS
        self.shape = self.count, n

    @classmethod
    def none(cls, n: int) -> RoundedVectors:
        return cls(array("Q"), {}, n)

    def dim(self) -> int:
        return 2

    def changed(self, slot: int, one: RoundedVector | None) -> RoundedVectors:
        """The same but for one slot, which has this vector, None: none."""
        if one is not None and one.count != self.n:
            raise ValueError(f"a vector of {one.count} numbers among those of {self.n}")
        kept = dict(self.kept)
        kept.pop(slot, None)
        if one is not None:
            kept[slot] = one.memory
        count = max(kept, default=-1) + 1
        words = self.words[: _WORDS * count]
        words.frombytes(bytes(8 * (_WORDS * count - len(words))))
        if slot < count:
            record = (0, 0, 0, 0) if one is None else (one.codes_at, one.scales_at, one.bits, one.count)
            words[_WORDS * slot : _WORDS * (slot + 1)] = array("Q", _record(*record))
        return RoundedVectors(words, kept, self.n)

    def of(self, slot: int) -> RoundedVector:
        """Raises KeyError for a slot that has none."""
        memory = self.kept[slot]
        codes_at, scales_at, bits, count = self.words[_WORDS * slot : _WORDS * (slot + 1)]
        return RoundedVector(memory, codes_at, scales_at, bits, count)

    def vector(self, slot: int) -> Tensor:
        """Its numbers: float32 [n]."""
        return self._rows([slot])[0]

    def row(self, slot: int) -> Tensor:
        """The same, [1, n], where nobody records what is done."""
        return self._filled((slot,))

    def dense(self) -> Tensor:
        """All of them: float32 [count, n], a constant for whoever traces."""
        with _unrecorded():
            return self._filled(range(self.count))

    def __getitem__(self, slots: Tensor) -> Tensor:
        """float32 [*slots.shape, n]."""
        if recorded() or type(slots) is not Tensor or not slots.is_cpu:
            return self.dense()[slots]
        return self._rows(slots.flatten().tolist()).view(*slots.shape, self.n)

    def used(self, slots: Tensor) -> Tensor:
        """`dense`, but that only these slots have numbers, others anything finite."""
        if self.count <= ALL or recorded():
            return self.dense()
        made = torch.zeros(self.shape, dtype=torch.float32, device="cpu")
        for slot in set(slots.flatten().tolist()) & self.kept.keys():
            made[slot] = self.vector(slot)
        return made

    def held(self) -> list[Tensor]:
        """All memory of them."""
        return [t for slot in self.kept for t in self.of(slot).tensors()]

    def _rows(self, slots: Sequence[int]) -> Tensor:
        """float32 [slots, n], zeros where a slot has none."""
        if recorded():
            with _unrecorded():
                return self._filled(slots)
        return self._filled(slots)

    def _filled(self, slots: Sequence[int]) -> Tensor:
        out = torch.empty(len(slots), self.n, dtype=torch.float32, device=_cpu)
        if not readable():
            for row, slot in zip(out, slots):
                row.copy_(_plain(self.of(slot)) if slot in self.kept else torch.zeros_like(row))
            return out
        given = array("i", slots)
        where = given.buffer_info()
        check(
            loaded().dts_rounded_rows(
                _rows_record(
                    name_of(None), self.pointer, self.count, *where, self.n, out.data_ptr(), len(slots) * self.n
                )
            ),
            "rounded_rows",
        )
        return out

    def __reduce__(self) -> Any:
        """A copy has its memory elsewhere."""
        return _restored, (self.n, {slot: self.of(slot) for slot in self.kept})


def _plain(one: RoundedVector) -> Tensor:
    """What C gives, where there is none: of a copy from a machine that has it."""
    found = one.tensors()
    return found[0] if one.bits == FLOATS else reference.rounded_numbers(found[0], found[1], one.bits, one.count)


def _restored(n: int, vectors: dict[int, RoundedVector]) -> RoundedVectors:
    made = RoundedVectors.none(n)
    for slot, one in vectors.items():
        made = made.changed(slot, one)
    return made


Addends = Tensor | RoundedVectors  # float32 [slots, n] of what tasks add


def as_tensor(adds: Addends | None, slots: Tensor) -> Tensor | None:
    """For those who read tensors alone, what these slots have of it."""
    return adds.used(slots) if isinstance(adds, RoundedVectors) else adds


def if_tensor(adds: Addends | None) -> Tensor | None:
    return None if isinstance(adds, RoundedVectors) else adds
