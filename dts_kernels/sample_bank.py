"""Samples of all loaded tasks of one layer, as the ops take them."""

from dataclasses import replace

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from . import sample_contents
from .arena import Arena, piece
from .cpu.native_samples import SampleArray
from .layout import packed_width
from .operands import SampleOperands, StoredSamples
from .routing import Routing
from .sample_table import PLAIN, Tables, fields_of, read, row_of
from .sample_words import from_words, to_words, words_of
from .samples import Samples, elements_of


class SampleArena:
    """All samples of a bank on its device, in tensors that stay where they are until they have to grow.

    So compiled programs and captured CUDA graphs go on working while tasks come and go.  The codes lie as the GPU
    kernels read them (`sample_words`).  Tables that had to grow, or to get shares, are still kept up to date for those
    who hold them, without the tasks that there is no room for in them: those add nothing.
    """

    def __init__(self, device: torch.device):
        self.words = Arena(torch.int32, device)
        self.tables = [Tables.empty(8, 8, PLAIN, device)]  # the last ones are what new kernels get
        self.held: dict[int, tuple[tuple[int, Samples], ...]] = {}  # slot -> (place in its run, a sample without codes)

    def add(self, slot: int, samples: tuple[Samples, ...]) -> None:
        self.remove(slot)
        if samples:
            words = [to_words(one.codes).flatten() for one in samples]
            self.words.put(slot, torch.cat(words))
        sizes = [words_of(*one.codes.shape) for one in samples]
        self.held[slot] = tuple((sum(sizes[:i]), one.to("meta")) for i, one in enumerate(samples))
        self._tell()

    def remove(self, slot: int) -> None:
        if self.held.pop(slot, None) is not None:
            self._tell()  # before its memory may be another's
            self.words.drop(slot)

    def widen(self, tasks: int) -> None:
        """Tables for so many tasks in slots from 0 on, of as many samples each as any so far."""
        (room, fields), slots = self.tables[-1].table.shape, self.tables[-1].starts.shape[0] - 1
        rows = tasks * max([1, *map(len, self.held.values())])
        if rows > room or tasks > slots:
            self.tables.append(Tables.empty(max(rows, room), max(tasks, slots), fields, self.words.tensor.device))
            self._tell()

    def samples(self, slot: int) -> tuple[Samples, ...]:
        """In disk bytes again."""
        return tuple(
            replace(one, codes=_codes_at(self.words.tensor, self._start(slot) + at, *one.codes.shape))
            for at, one in self.held[slot]
        )

    def _start(self, slot: int) -> int:
        return self.words.taken[slot][0]

    def __getstate__(self) -> dict:
        """A copy's memory is elsewhere, and no graph holds its tables."""
        return self.__dict__ | {"tables": self.tables[-1:]}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._tell()

    def _tell(self) -> None:
        tasks = {slot: [(self._start(slot) + at, one) for at, one in held] for slot, held in self.held.items()}
        self.tables = [*self.tables[:-1], *self.tables[-1].with_room_for(tasks)]
        for tables in self.tables:
            tables.write(tasks)

    def memory(self) -> list[Tensor]:
        return [self.words.tensor, *self.words.chunks, *(tensor for tables in self.tables for tensor in tables)]

    @property
    def arguments(self) -> StoredSamples:
        return StoredSamples([self.words.tensor], *self.tables[-1])


class SampleBank:
    """Samples of every loaded task of one [out_features, in_features] layer.

    transposed: they are of the [in_features, out_features] matrix (layers that store their weight so).
    arena: words in one tensor, as the GPU kernels read them; None takes what the device needs.
    """

    def __init__(
        self, in_features: int, out_features: int, device="cpu", transposed: bool = False, arena: bool | None = None
    ):
        self.in_features, self.out_features, self.device = in_features, out_features, torch.device(device)
        self.transposed = transposed
        self.arena = SampleArena(self.device) if (self.device.type != "cpu" if arena is None else arena) else None
        self._samples: dict[int, tuple[Samples, ...]] = {}
        self.ready: StoredSamples | None = None
        self._array: SampleArray | None = None
        self._made: tuple[Routing, SampleOperands] | None = None  # for the routing that was used last
        self._refresh()

    @property
    def shape(self) -> tuple[int, int]:
        """Of the matrices."""
        shape = self.out_features, self.in_features
        return shape[::-1] if self.transposed else shape

    def add(self, slot: int, samples: tuple[Samples, ...]) -> None:
        """Put a task's samples, each of the bank's ``shape``, into a free or used slot."""
        if slot < 0:
            raise ValueError(f"slot must be 0 or more, not {slot}")
        for one in samples:
            if one.shape != self.shape:
                raise ValueError(f"samples of {list(one.shape)} do not fit a layer's matrix of {list(self.shape)}")
        samples = tuple(one.to(self.device) for one in samples)
        if self.arena:
            self.arena.add(slot, samples)
        else:
            self._samples[slot] = samples
        self._refresh()

    def widen(self, tasks: int) -> None:
        """Let an arena's tables have room for so many tasks, so that loading them makes no other ones."""
        if self.arena:
            self.arena.widen(tasks)
            self._refresh()

    def remove(self, slot: int) -> None:
        if self.arena:
            self.arena.remove(slot)
        self._samples.pop(slot, None)
        self._refresh()

    def samples(self, slot: int) -> tuple[Samples, ...]:
        return self.arena.samples(slot) if self.arena else self._samples[slot]

    @property
    def slots(self) -> list[int]:
        return sorted(self.arena.held if self.arena else self._samples)

    def __len__(self) -> int:
        """How many tasks have samples."""
        return len(self.arena.held if self.arena else self._samples)

    @property
    def nbytes(self) -> int:
        """Bytes of the codes; of an arena all that it holds."""
        return sum(t.nbytes for t in self.held())

    def held(self) -> list[Tensor]:
        """All memory of the bank's codes; of an arena with its tables."""
        return self.arguments[0] if self.arena is None else self.arena.memory()

    def to(self, device) -> "SampleBank":
        moved = SampleBank(self.in_features, self.out_features, device, self.transposed)
        for slot in self.slots:
            moved.add(slot, self.samples(slot))
        return moved

    @property
    def arguments(self) -> StoredSamples:
        """What the ops take of the bank."""
        if self.arena is None and torch.compiler.is_compiling() or self.ready is None:
            self._prepare()
        assert self.ready is not None
        return self.ready

    def _prepare(self) -> bool:
        """Derived if it is not, also while a program is being made."""
        if self.ready is None:
            self.ready = self._derive()
        return True

    _prepare._dynamo_marked_constant = True  # type: ignore[attr-defined]  # as of `Bank`

    @property
    def array(self) -> SampleArray:
        """What C reads, another object after each change; made when it is first asked for."""
        if self._array is None:
            self._array = SampleArray.of(*self.arguments)
        return self._array

    def operands(self, routing: Routing) -> SampleOperands:
        """What the ops take for a routing, made once for the one that was used last."""
        made = self._made
        if made is None or made[0] is not routing:
            self._made = made = routing, self.new_operands(routing)
        return made[1]

    def new_operands(self, routing: Routing) -> SampleOperands:
        """The same, not kept: for those who trace, whose programs must not depend on which routing was last."""
        return SampleOperands(*self.arguments, routing.slots, routing.weights)

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._refresh()  # a copy's memory is elsewhere

    def _refresh(self) -> None:
        """What the ops take is made again: of an arena now, else when it is first needed, see `Bank`."""
        self.ready = self._array = self._made = None
        if self.arena:
            self.ready = self.arena.arguments
            sample_contents.trust(self.ready, self.shape, self.arena.memory())

    def _derive(self) -> StoredSamples:
        with _disable_current_modes(), torch.inference_mode(False):  # see `DiskStore.derived`
            found = [(slot, one) for slot in self.slots for one in self._samples[slot]]
            counts = [len(self._samples.get(slot, ())) for slot in range(max(self._samples, default=-1) + 1)]
            fields = fields_of(one for _, one in found)
            table = torch.tensor([row_of(slot, 0, one, fields) for slot, one in found], dtype=torch.int64)
            scales = torch.tensor([one.scale for _, one in found], dtype=torch.float32)
            codes, starts = [one.codes for _, one in found], torch.tensor([0, *counts]).cumsum(0)
            return StoredSamples(codes, table.view(-1, fields), starts, scales)


def samples_of(stored: StoredSamples, shape: tuple[int, int]) -> dict[int, tuple[Samples, ...]]:
    """The inverse of a bank's arguments: slot -> samples; shape: (out_features, in_features).  Reads the table on the
    host."""
    codes, table, starts, scales = stored
    found: dict[int, tuple[Samples, ...]] = {}
    arena, count = bool(codes) and codes[0].dim() == 1, int(starts[-1])
    rows = map(read, table[:count].tolist())
    for k, ((slot, offset, stride, seed, share), scale) in enumerate(zip(rows, scales.tolist())):
        width = packed_width(elements_of(shape[1], stride, share))
        own = _codes_at(codes[0], offset, shape[0], width) if arena else codes[k]
        found[slot] = (*found.get(slot, ()), Samples(own, scale, stride, seed, shape, share))
    return found


def _codes_at(words: Tensor, offset: int, rows: int, width: int) -> Tensor:
    """Disk bytes [rows, width] of the words from an offset on."""
    return from_words(piece(words, offset, words_of(rows, width)), rows, width)
