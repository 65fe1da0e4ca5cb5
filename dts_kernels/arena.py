"""Memory for what comes and goes, in chunks that never move.

A kernel finds a run by its *offset*: how many elements behind the arena's *anchor* it begins, whatever chunk it is in
(before the anchor it is negative).  The anchor is a small tensor that lives as long as its arena, so a launch, a
compiled program or a captured CUDA graph holds one address, and new chunks change nothing for any of them.
An anchor stands for all chunks of its arena: `piece` follows an offset into them and nowhere else.
"""

from collections.abc import Iterator
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from .layout import round_up

ALIGN = 8  # elements: where a run begins
GRAIN = 512  # bytes that CUDA's allocator hands out at least: chunks are multiples, so that `nbytes` is what they take
SPARE = 32  # a new chunk has room for more such runs up to 1 / SPARE of what is held: many tasks make few chunks

_ARENAS: "WeakValueDictionary[tuple[torch.device, int], Arena]" = WeakValueDictionary()  # by their anchor's address


class Arena:
    """Runs of any size in a slot each: into the first gap that is large enough, else into a new chunk.

    tensor: the anchor;  taken: slot -> (start, stop), offsets of its run.
    """

    def __init__(self, dtype: torch.dtype, device):
        self.tensor = torch.zeros(GRAIN // dtype.itemsize, dtype=dtype, device=device)
        self.chunks: list[Tensor] = []
        self.kept: set[int] = set()  # addresses of chunks that `reserve` made: they stay when they are empty
        self.taken: dict[int, tuple[int, int]] = {}
        self._register()

    def put(self, slot: int, values: Tensor) -> int:
        """Copy 1-D values into the slot's run; returns its offset, a multiple of `ALIGN`."""
        start = self.room(slot, values.numel())
        self.view(start, values.numel()).copy_(values)
        return start

    def room(self, slot: int, size: int) -> int:
        """The offset of a new run of ``size`` elements, whose contents are anything; the slot's old run is let go."""
        self.drop(slot)
        size = round_up(size, ALIGN)
        start = next((start for start, stop in self._gaps() if stop - start >= size), None)
        if start is None:
            self._release()
            held = sum(chunk.numel() for chunk in self.chunks)
            start = self._offset(self._grow(size * max(1, held // SPARE // max(size, 1))))
        self.taken[slot] = start, start + size
        return start

    def drop(self, slot: int) -> None:
        """Free a slot's run, and its chunk where nothing else is in it and nobody reserved it."""
        if self.taken.pop(slot, None) is not None:
            self._release()

    def reserve(self, count: int, size: int) -> None:
        """Room for ``count`` runs of up to ``size`` elements; it stays when they go."""
        size = max(round_up(size, ALIGN), ALIGN)
        for chunk in self.chunks:
            fit = sum((stop - start) // size for start, stop in self._gaps_of(chunk))
            if count > 0 and fit:
                self.kept.add(chunk.data_ptr())
                count -= fit
        if count > 0:
            self.kept.add(self._grow(count * size).data_ptr())

    def view(self, start: int, size: int) -> Tensor:
        """The elements from an offset on."""
        return piece(self.tensor, start, size)

    @property
    def nbytes(self) -> int:
        """Of the chunks and the anchor, all that they take from the device."""
        return sum(t.nbytes for t in (self.tensor, *self.chunks))

    def _offset(self, tensor: Tensor) -> int:
        return (tensor.data_ptr() - self.tensor.data_ptr()) // self.tensor.element_size()

    def _grow(self, size: int) -> Tensor:
        size = round_up(size * self.tensor.element_size(), GRAIN) // self.tensor.element_size()
        chunk = torch.empty(size, dtype=self.tensor.dtype, device=self.tensor.device)
        distance = chunk.data_ptr() - self.tensor.data_ptr()
        if distance % (ALIGN * self.tensor.element_size()):
            raise RuntimeError(f"memory of {self.tensor.device} is not aligned to {ALIGN} elements")
        self.chunks.append(chunk)
        return chunk

    def _gaps(self) -> Iterator[tuple[int, int]]:
        for chunk in self.chunks:
            yield from self._gaps_of(chunk)

    def _gaps_of(self, chunk: Tensor) -> Iterator[tuple[int, int]]:
        start = self._offset(chunk)
        end = start + chunk.numel()
        for taken_start, taken_stop in sorted(self.taken.values()):
            if start <= taken_start < end:
                yield start, taken_start
                start = taken_stop
        yield start, end

    def _release(self) -> None:
        starts = [start for start, _ in self.taken.values()]
        spans = [(self._offset(chunk), chunk) for chunk in self.chunks]
        self.chunks = [
            chunk
            for first, chunk in spans
            if chunk.data_ptr() in self.kept or any(first <= s < first + chunk.numel() for s in starts)
        ]

    def _register(self) -> None:
        _ARENAS[self.tensor.device, self.tensor.data_ptr()] = self

    def __getstate__(self) -> dict:
        """Offsets are of this memory: a copy gets places in chunks instead."""
        state = self.__dict__.copy()
        spans = [(self._offset(chunk), chunk.numel()) for chunk in self.chunks]
        state["taken"] = {
            slot: next((i, start - first, stop - first) for i, (first, n) in enumerate(spans) if 0 <= start - first < n)
            for slot, (start, stop) in self.taken.items()
        }
        state["kept"] = {i for i, chunk in enumerate(self.chunks) if chunk.data_ptr() in self.kept}
        return state

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        firsts = [self._offset(chunk) for chunk in self.chunks]
        self.taken = {slot: (firsts[i] + a, firsts[i] + b) for slot, (i, a, b) in state["taken"].items()}
        self.kept = {self.chunks[i].data_ptr() for i in state["kept"]}
        self._register()


def pieces(anchor: Tensor) -> Iterator[tuple[int, Tensor]]:
    """(first offset, tensor of the anchor's dtype) of all memory that offsets from a tensor may point to: its own, and
    the chunks of the arena whose anchor it is."""
    yield 0, anchor
    arena = _ARENAS.get((anchor.device, anchor.data_ptr()))
    for chunk in () if arena is None else arena.chunks:
        yield (chunk.data_ptr() - anchor.data_ptr()) // anchor.element_size(), chunk.view(anchor.dtype)


def piece(anchor: Tensor, start: int, size: int) -> Tensor:
    """``size`` elements from an offset on.  Raises ValueError where they are not all in one piece."""
    for first, tensor in pieces(anchor):
        if 0 <= start - first and start - first + size <= tensor.numel():
            return tensor[start - first : start - first + size]
    raise ValueError(f"{size} elements from {start} on are in no memory of the bank")
