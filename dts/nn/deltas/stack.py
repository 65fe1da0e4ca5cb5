"""Raw tensors (biases, norms, heads), one a task, stacked so that rows choose theirs by index: what comes and goes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import reduce
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from dts.nn.deltas.held import Held
from dts.nn.routing import tracing
from dts_kernels import Routing
from dts_kernels.layout import alone
from dts_kernels.rounded import Addends, RoundedVector, RoundedVectors, readable

ROOM = 8  # rows of a stack that stays where it is, at first
SMALL = 1 << 16  # numbers of a row of such a stack, at most: unused ones would take more memory than tasks
EAGER = 8  # tasks: beyond, a stack is made again when it is needed, not with every task that goes


class Stack(Held):
    """Raw tensors of the tasks that have one, stacked by slot; sizes of dim 0 may differ, shorter ones end in zeros.

    Vectors that came in few bits stay so on a CPU, where C reads them, among others of their size in float32.  Programs
    that are traced with their tensors have a stack from then on.  Matrices of several sizes, as heads with their own
    number of classes are, lie apart on a CPU until somebody asks for the stack, where each is as large as the largest.

    stays: it stays filled when its last tensor goes, all zeros then: a program that adds it needs not be another one.
    On a GPU a CUDA graph may hold the stack's address, too: it has room for tasks to come, which are written into it,
    and one that had to grow is kept up to date for those who hold it, without the tasks that it has no room for.
    filled: whether some task has one;  longest: the largest size of dim 0;  size: that of a row of the stack;  version:
    another one whenever a tensor came or went
    """

    def __init__(self, device: torch.device | str = "cpu", stays: bool = False):
        super().__init__()
        self.stays, self.filled, self.version = stays, False, 0
        self.size: tuple[int, ...] = ()
        self.device = torch.device(device)
        self._own: dict[int, Tensor | int] = {}  # by slot, what is not in the stack yet, or the size of its row there
        self._stack: Tensor | None = None
        self._length: Tensor | None = None
        self._wide: Tensor | None = None
        self._made = False  # stack and length are of now
        self._older: list[tuple[Tensor, Tensor, Tensor | None]] = []  # stack, length and wide that a graph may hold
        self._least = ROOM
        self._few: RoundedVectors | None = None  # in place of a stack
        self._spread = False  # there is one, whatever comes
        self._refresh()

    def __getstate__(self) -> dict[str, Any]:
        """No graph holds what a copy has."""
        return super().__getstate__() | {"_older": []}

    @property
    def _in_place(self) -> bool:
        return self.stays and _holds_addresses(self.device) and torch.Size(self.size).numel() <= SMALL

    def reserve(self, slots: int) -> None:
        """Room for tasks in slots below that, in what is made from now on."""
        self._least = max(self._least, slots)
        if self._in_place and self._stack is not None and self._stack.shape[0] < self._least:
            self._make()

    @property
    def slots(self) -> Mapping[int, object]:
        """Of the tasks that have a tensor."""
        return self._own

    @property
    def tensors(self) -> Mapping[int, Tensor]:
        """By slot.  The stack is the only copy: a tensor of each, kept, would take more memory than a short vector."""
        return _Tensors(self)

    def tensor(self, slot: int) -> Tensor:
        own = self._own[slot]
        if self._few is not None:
            return self._few.vector(slot)
        if isinstance(own, Tensor):
            return own
        assert self._stack is not None
        row = self._stack[slot]
        return row[:own] if row.dim() else row

    def add(self, slot: int, tensor: Tensor | RoundedVector) -> None:
        if self._keep(slot, tensor):
            return
        own = (tensor.values() if isinstance(tensor, RoundedVector) else tensor.detach()).to(self.device)
        if self._write(slot, own) if self._in_place else self._append(slot, own):
            return
        if own.dim() > 1 and own.is_cpu:  # it stays, perhaps, and what else is in a file's memory does not
            own = alone(own)
        before = dict(vars(self), _own=dict(self._own))
        try:
            self._to_stack()
            self._own[slot] = own
            self._refresh()
        except BaseException:  # no memory, or sizes that do not stack: as it was
            vars(self).update(before)
            raise

    def _write(self, slot: int, tensor: Tensor | None) -> bool:
        """Into the row that there is for it, zeros for None, and into those of older stacks."""
        stack = self._stack
        if not self._made or stack is None or slot >= stack.shape[0] or not self.size:
            return False
        if tensor is not None and (tensor.shape != stack.shape[1:] or tensor.dtype != stack.dtype):
            return False
        size = 0 if tensor is None else self.longest
        assert self._length is not None
        for rows, length, wide in (*self._older, (stack, self._length, self._wide)):
            if slot < rows.shape[0] and rows.shape[1:] == stack.shape[1:]:
                length[slot] = size
                for row in (rows[slot],) if wide is None else (rows[slot], wide[slot]):
                    row.zero_() if tensor is None else row.copy_(tensor)
        self._own.pop(slot, None)
        if tensor is not None:
            self._own[slot] = size
        self.version += 1
        return True

    def _append(self, slot: int, tensor: Tensor) -> bool:
        """A row more behind the others, if it is one of their size: what is there is not gone through."""
        stack, length = self._stack, self._length
        if not self._made or stack is None or length is None or slot != stack.shape[0]:
            return False
        if not self.size or tensor.shape != stack.shape[1:] or tensor.dtype != stack.dtype:
            return False
        stack, length = torch.cat([stack, tensor[None]]), torch.constant_pad_nd(length, (0, 1), self.longest)
        self._stack, self._length, self._wide = stack, length, None
        self._own[slot] = self.longest
        self.version += 1
        return True

    def _keep(self, slot: int, given: Tensor | RoundedVector) -> bool:
        """Take it as it is, beside others in few bits or as the first that is; False: nothing was done."""
        few = self._few
        if few is None and not isinstance(given, RoundedVector):
            return False
        if self._spread or self.device.type != "cpu" or _holds_addresses(self.device):
            return False
        if not isinstance(given, RoundedVector):
            if given.dtype is not torch.float32 or given.dim() != 1 or not given.is_cpu:
                return False
            given = RoundedVector.floats(given.detach().clone())
        if few is None:
            others = dict(self.tensors)
            if not readable() or any(
                t.dtype is not torch.float32 or t.shape != (given.count,) for t in others.values()
            ):
                return False
            few = RoundedVectors.none(given.count)
            for other, tensor in others.items():
                few = few.changed(other, RoundedVector.floats(tensor.clone()))
        elif few.n != given.count:
            return False
        self._few = few.changed(slot, given)
        self._own = dict.fromkeys([*self._own, slot], given.count)
        self.size = (given.count,)
        self._refresh()
        return True

    def _to_stack(self) -> bool:
        """Everything as numbers, in the stack that others have."""
        if self._few is not None:
            with _disable_current_modes(), torch.inference_mode(False):  # whoever traces sees none of it
                tensors: dict[int, Tensor | int] = dict(self.tensors)
                self._own, self._few = tensors, None
                self._refresh()
        return True

    def _stay_stacked(self) -> bool:
        self._spread = True
        return self._to_stack()

    _stay_stacked._dynamo_marked_constant = True  # type: ignore[attr-defined]  # as of `Bank`

    def remove(self, slot: int) -> None:
        if slot in self._own and not (self._in_place and self._write(slot, None)):
            del self._own[slot]
            if self._few is not None:
                self._few = self._few.changed(slot, None) if self._own else None
            self._refresh()

    def to(self, device: torch.device | str) -> None:
        if torch.device(device) == self.device:
            return
        self._own, self._few = {slot: tensor.to(device) for slot, tensor in self.tensors.items()}, None
        self.device, self._stack, self._length, self._wide, self._older = torch.device(device), None, None, None, []
        self._refresh()

    def _refresh(self) -> None:
        """Make the stack again; beyond EAGER tasks on the CPU when first needed."""
        self._made = False
        self.version += 1
        if not self._in_place:
            self._wide = None
        self.filled = bool(self._own) or self.stays and self.filled
        self.longest = max(self._sizes(), default=0)
        first = next(iter(self._own.values()), None)
        if isinstance(first, Tensor):
            self.size = (self.longest, *first.shape[1:]) if first.dim() else ()
        elif first is not None:  # of the same dimensions as that which is in the stack
            self.size = (self.longest, *self.size[1:]) if self.size else ()
        elif not self.filled:
            self.size = ()
        if not self._own or self._few is not None:
            self._stack = self._length = self._wide = None
        elif self.device.type != "cpu" or self._in_place or len(self._own) <= EAGER and not self._apart:
            self._make()
        else:
            self._length = None

    @property
    def _apart(self) -> bool:
        return len(self.size) > 1 and not self.even

    def _sizes(self) -> list[int]:
        return [own if isinstance(own, int) else own.shape[0] if own.dim() else 1 for own in self._own.values()]

    @property
    def even(self) -> bool:
        """Whether all tensors have the size of a row of the stack."""
        return all(size == self.longest for size in self._sizes())

    @property
    def stack(self) -> Tensor:
        """[slots, longest, ...]; it must be filled.  Of vectors in few bits made for whoever asks."""
        if isinstance(few := self.source, RoundedVectors):
            return few.dense()
        return self._stack if self._made and self._stack is not None else self._make()[0]

    @property
    def length(self) -> Tensor:
        """int64 [slots], 0 = this slot has none; it must be filled."""
        if isinstance(few := self.source if tracing() else self._few, RoundedVectors):
            own = [self.longest if slot in self._own else 0 for slot in range(few.count)]
            return torch.tensor(own, device=self.device)
        if tracing() or self._in_place:
            return self._length if self._made and self._length is not None else self._make()[1]
        if self._length is None:
            sizes = dict(zip(self._own, self._sizes()))
            with _disable_current_modes(), torch.inference_mode(False):  # it stays
                self._length = torch.tensor([sizes.get(slot, 0) for slot in range(self.count)], device=self.device)
        return self._length

    @property
    def count(self) -> int:
        """Slots that the stack has a row for."""
        return self._stack.shape[0] if self._made and self._stack is not None else max(self._own, default=0) + 1

    def _make(self) -> tuple[Tensor, Tensor]:
        """The stack and the lengths."""
        if self._in_place and self._stack is not None and self._length is not None:
            self._older.append((self._stack, self._length, self._wide))
        count = max(self._own, default=0) + 1
        shape = (max(self._least, 1 << (count - 1).bit_length()) if self._in_place else count, *self.size)
        tensors = {slot: self.tensor(slot) for slot in self._own}
        dtypes = [t.dtype for t in tensors.values()]
        dtype = reduce(torch.promote_types, dtypes) if dtypes else torch.float32
        if self.size and len({(t.shape, t.dtype) for t in tensors.values()}) == 1:  # as vectors are: in few calls
            gap = torch.zeros(self.size if len(tensors) < shape[0] else 0, dtype=dtype, device=self.device)
            stack = torch.stack([tensors.get(slot, gap) for slot in range(shape[0])])
        else:
            stack = torch.zeros(shape, dtype=dtype, device=self.device)
            for slot, tensor in tensors.items():
                row = stack[slot, : tensor.shape[0]] if tensor.dim() else stack[slot]
                row.copy_(tensor)
        own = {slot: t.shape[0] if t.dim() else 1 for slot, t in tensors.items()}
        length = torch.tensor([own.get(slot, 0) for slot in range(shape[0])], device=self.device)
        self._own, self._stack, self._length, self._wide, self._made = dict(own), stack, length, None, True
        return stack, length

    @property
    def source(self) -> Addends:
        """What rows choose from: the stack, or vectors in few bits."""
        if self._few is not None and not (tracing() and self._stay_stacked()):
            return self._few
        return self._stack if self._made and self._stack is not None else self._make()[0]

    def held(self) -> list[Tensor]:
        """Everything it holds in memory."""
        if self._few is not None:
            return self._few.held() if self._own else []
        if self._made or not self._apart:
            return [self.stack] if self._own else []
        return [self.tensor(slot) for slot in self._own]

    @property
    def wide(self) -> Addends:
        """The stack in float32, or in few bits, as kernels add it."""
        if isinstance(few := self.source, RoundedVectors):
            return few
        if self._wide is None:
            with torch.inference_mode(False):  # the next task is written into it, wherever that is loaded
                self._wide = self.stack.to(torch.float32)
        return self._wide

    def index(self, routing: Routing) -> tuple[Tensor, Tensor]:
        """Rows of the stack and their gammas; a slot without a tensor has a row of zeros or is beyond the stack."""
        count = self.source.shape[0] if tracing() or self._in_place else self.count
        index = routing.slots.clamp(0, count - 1)
        return index, torch.where(index == routing.slots, routing.weights, 0.0)


def _holds_addresses(device: torch.device) -> bool:
    """Whether something may be captured there that reads the same memory whenever it is replayed."""
    return device.type == "cuda"


class _Tensors(Mapping[int, Tensor]):
    """A table's tensors, made when they are asked for."""

    def __init__(self, table: Stack):
        self._table = table

    def __getitem__(self, slot: int) -> Tensor:
        return self._table.tensor(slot)

    def __iter__(self) -> Iterator[int]:
        return iter(self._table.slots)

    def __len__(self) -> int:
        return len(self._table.slots)

    def __contains__(self, slot: object) -> bool:
        return slot in self._table.slots
