"""One launch of `shrink` for products that follow one another with the same x, in a CUDA graph.

What a graph holds is one sequence of launches, so which products share an x is noted in one capture (`Recording`
without groups) and used in later ones (with what the first one `found`).  There the first product of a group launches
`shrink` for all of them, and each of the others takes its t if it gets that x and that routing, unwritten, else it
launches its own.  Whoever captures says what is written meanwhile (`Recording.written`), and has both t's compared
(`Proof`): nobody sees a kernel that was given a pointer.  Eager calls know nothing of this, nor do compiled programs,
whose buffers have other contents without a word, nor tensors of inference mode, which count no writes
(benchmarks/kernels/LOG.md, 7 and 11).
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from .. import contents
from ..layout import round_up
from ..operands import FactorOperands
from ..planar import RANK_BLOCK
from .config import Config
from .device import Started
from .launch import ALIGNMENT

if TYPE_CHECKING:
    from .products import Launch

MOST = 3  # matrices of a launch


class Matrix(NamedTuple):
    """What `shrink` is told of a matrix.  config: of a launch of its own."""

    operands: FactorOperands
    config: Config

    @property
    def width(self) -> int:
        return self.operands.max_rank

    @property
    def addresses(self) -> tuple[int, ...]:
        """Those and the numbers that a launch has of it, which graphs read whatever tasks come and go."""
        packed, table = self.operands.packed, self.operands.table
        return *[t.data_ptr() for t in (*packed, table)], table.shape[0], self.width

    @property
    def slots(self) -> set[int]:
        """Of the tasks that change it.  Reads device memory."""
        return set(self.operands.table[:, -1].nonzero().flatten().tolist())

    def rank(self, slot: int) -> int:
        """Of the task in a slot, 0 where there is none.  Reads device memory."""
        table = self.operands.table
        return int(table[slot, -1]) if slot < table.shape[0] else 0

    def joins(self, other: Matrix) -> bool:
        """Whether one launch may make both t's: parts and rows of a program are all that the bits depend on."""
        kind = lambda m: (m.config.split, m.config.block_t, m.operands.layout)  # noqa: E731
        return kind(self) == kind(other)


class Group(NamedTuple):
    """Matrices of one launch, the routing of its rows (slots, weights), and the x that they are multiplied with."""

    matrices: tuple[Matrix, ...]
    routing: tuple[Tensor, Tensor]
    rows: int
    in_features: int
    dtype: torch.dtype
    device: torch.device


class _Given(NamedTuple):
    """An x and the routing of its rows, kept, so that no other tensor has their memory; first: the product's number."""

    tensors: tuple[Tensor, Tensor, Tensor]
    versions: tuple[int | None, ...]
    memory: tuple[tuple[int, int], ...]
    first: int

    @classmethod
    def of(cls, launch: Launch, first: int) -> _Given:
        tensors = launch.x, launch.slots, launch.weights
        return cls(tensors, tuple(map(contents.version_of, tensors)), tuple(map(_memory, tensors)), first)

    def again(self, launch: Launch) -> bool:
        """Whether a product is of these very numbers, as far as PyTorch counts what is written."""
        now = launch.x, launch.slots, launch.weights
        return self.versions == tuple(map(contents.version_of, now)) and all(
            one.data_ptr() == other.data_ptr()
            and one.shape == other.shape
            and one.dtype is other.dtype
            and one.stride() == other.stride()
            for one, other in zip(self.tensors, now)
        )


class Recording:
    """The products of one run, in their order.

    found: number of the first -> a group, what another run may use;  taken: how many found their t made
    uncounted: whether a product had an x that counts no writes, which is not shared
    """

    def __init__(self, groups: Mapping[int, Group] | None = None):
        self._groups = groups or {}
        self.found: dict[int, Group] = {}
        self.taken = self._count = 0
        self.uncounted = False
        self._given: _Given | None = None
        self._run: list[Matrix] = []
        self._ready: list[tuple[Matrix, Tensor]] = []

    def start(self, launch: Launch) -> Started | None:
        """t of the next product, under way or made; None where it has to launch its own."""
        number, self._count = self._count, self._count + 1
        matrix = Matrix(launch.operands, launch.config("shrink", launch.width, launch.in_features))
        if self._given is None or not self._given.again(launch):
            self.forget()
            if launch.x.is_inference():
                self.uncounted = True
                return None
            if any(t.data_ptr() % ALIGNMENT or not t.numel() for t in (launch.x, launch.slots, launch.weights)):
                return None
            self._given = _Given.of(launch, number)
        self._run.append(matrix)
        if self._ready:
            (wanted, t), *self._ready = self._ready
            if wanted.addresses == matrix.addresses and wanted.joins(matrix):
                self.taken += 1
                return self._take(launch, matrix, t)
            self._ready = []
        group = self._groups.get(number)
        if group is None or group.matrices[0].addresses != matrix.addresses or not group.matrices[0].joins(matrix):
            return None
        return self._first(launch, number, group.matrices)

    def _first(self, launch: Launch, number: int, matrices: tuple[Matrix, ...]) -> Started | None:
        return self._together(launch, matrices)

    def _take(self, launch: Launch, matrix: Matrix, t: Tensor) -> Started | None:
        return Started(t)

    def _together(self, launch: Launch, matrices: tuple[Matrix, ...]) -> Started:
        parts, whole = rooms(launch, matrices)
        started = launch.beside(parts, whole, lambda: launch.shrink_together(matrices, parts))
        ends = list(accumulate(launch.places * launch.rows * m.width for m in matrices))
        each = [
            whole.view(-1)[start:end].view(1, launch.places, launch.rows, m.width)
            for m, start, end in zip(matrices, [0, *ends], ends)
        ]
        self._ready = list(zip(matrices[1:], each[1:]))
        return started._replace(t=each[0])

    def written(self, tensor: Tensor) -> None:
        """Something else than a product writes into it."""
        if self._given is None:
            return
        try:
            start, end = _memory(tensor)
        except (RuntimeError, NotImplementedError):  # of a class whose memory is elsewhere
            self.forget()
            return
        if any(start < its_end and its_start < end for its_start, its_end in self._given.memory):
            self.forget()

    def forget(self) -> None:
        """What comes now has another x, or one that was written."""
        if self._given is not None:
            (x, *routing), number = self._given.tensors, self._given.first
            for matrices in _joined(self._run):
                if len(matrices) > 1:
                    self.found[number] = Group(
                        matrices, (routing[0], routing[1]), x.shape[0], x.shape[1], x.dtype, x.device
                    )
                number += len(matrices)
        self._given, self._run, self._ready = None, [], []


class Proof(Recording):
    """A run that makes each t twice, with the others of its group and by itself, which it goes on with.

    pairs: number of a group's first product -> (matrix, t of the group's launch, t of its own) of each
    """

    def __init__(self, groups: Mapping[int, Group]):
        super().__init__(groups)
        self.pairs: dict[int, list[tuple[Matrix, Tensor, Tensor]]] = {}
        self._first_number = 0

    def _first(self, launch: Launch, number: int, matrices: tuple[Matrix, ...]) -> Started | None:
        self._first_number = number
        return self._take(launch, matrices[0], self._together(launch, matrices).join())

    def _take(self, launch: Launch, matrix: Matrix, t: Tensor) -> Started | None:
        own = launch.start_shrink()
        self.pairs.setdefault(self._first_number, []).append((matrix, t, own.t))
        return own

    def proved(self, number: int, slot: int) -> set[int] | None:
        """Which of a group's matrices, by their order, have a t that shows it; None where one is another.

        slot: of all rows.  A matrix without that task shows nothing, nor does one whose t has a row of zeros, or no
        numbers: x may be written there.
        """
        shown, group = set(), self._groups[number]
        pairs = self.pairs.get(number, [])
        if len(pairs) != len(group.matrices):
            return None
        for nth, (matrix, shared, own) in enumerate(pairs):
            rank = matrix.rank(slot)
            shared, own = shared[..., : round_up(rank, RANK_BLOCK)], own[..., : round_up(rank, RANK_BLOCK)]
            if not torch.equal(shared.contiguous().view(torch.uint8), own.contiguous().view(torch.uint8)):
                return None
            if rank and bool((own.isfinite().all(-1) & (own != 0).any(-1)).all()):
                shown.add(nth)
        return shown


def rooms(launch: Launch, matrices: tuple[Matrix, ...]) -> tuple[Tensor, Tensor]:
    """(parts [SPLIT, numbers], whole [1, numbers]) of all their t's; the same where there is one part."""
    split, count = matrices[0].config.split, launch.places * launch.rows * sum(m.width for m in matrices)
    whole = torch.empty(1, count, dtype=launch.x.dtype, device=launch.x.device)
    return whole if split == 1 else torch.empty(split, count, dtype=torch.float32, device=whole.device), whole


def _joined(run: list[Matrix]) -> Iterator[tuple[Matrix, ...]]:
    """Cut where one launch cannot make both, or would be of more than it takes."""
    own: list[Matrix] = []
    for matrix in run:
        if own and (len(own) == MOST or not own[0].joins(matrix)):
            yield tuple(own)
            own = []
        own.append(matrix)
    yield tuple(own)


def _memory(tensor: Tensor) -> tuple[int, int]:
    """[start, end) of all that its storage has."""
    storage = tensor.untyped_storage()
    return storage.data_ptr(), storage.data_ptr() + storage.nbytes()


class _Here(threading.local):
    recording: Recording | None = None


_here = _Here()


def here() -> Recording | None:
    """Of the run that this thread is in."""
    return _here.recording


@contextmanager
def apart() -> Iterator[None]:
    """Within, products that no recording knows of."""
    before, _here.recording = _here.recording, None
    try:
        yield
    finally:
        _here.recording = before


@contextmanager
def recording(made: Recording) -> Iterator[None]:
    """Within, a run whose products ask it."""
    before, _here.recording = _here.recording, made
    try:
        yield
    finally:
        made.forget()
        _here.recording = before
