"""Measuring and encoding a model's matrices on a device: read by one thread, many of one shape at once.

The base's and the fine-tune's elements go over as they are stored, from pinned memory and on a stream of their own, a
batch ahead of the one that is computed; the difference is taken there.
"""

from collections.abc import Collection, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from dts.adapter.batches import Piece, batches, pieces, room_of
from dts.adapter.matrix import Matrix
from dts.adapter.threads import ahead
from dts.checkpoint import Pair, Pairing
from dts.codec import Factors
from dts.codec.compress import compress_many
from dts.codec.many import to_host

ALL = 1 << 30  # stands for a rank above any

Read = list[tuple[Tensor, Tensor]]  # of each piece: the fine-tune's [m, n], the base's [m, n]


@dataclass
class Measured:
    """All matrices of one tensor, in order; base_energy: the sum of squares of the base's tensor."""

    pair: Pair
    matrices: list[Matrix]
    base_energy: float


def measured(
    pairing: Pairing,
    pairs: Iterable[Pair],
    finished: Collection[str],
    spectrum: bool,
    count: int | None,
    device: torch.device,
) -> Iterator[Measured]:
    """Of every tensor, as soon as the last of its matrices is there.

    finished: names of those that need not be measured: batches that have others are as they would be without;
    spectrum, count: as in `Matrix.of_many`.
    """
    parts = {pair.name: pieces(pairing, pair, ALL if count is None else count) for pair in pairs}
    done: dict[str, dict[int, tuple[Matrix, float]]] = {}
    for batch, read in _read(pairing, [piece for own in parts.values() for piece in own], device, finished):
        wide = [torch.linalg.vector_norm(base.float(), dtype=torch.float64) for _, base in read]
        energies = to_host([torch.stack(wide)])[0].square().tolist()
        made = Matrix.of_many(_deltas(read), [piece.pair.name for piece in batch], spectrum, count)
        for piece, matrix, energy in zip(batch, made, energies):
            own = done.setdefault(piece.pair.name, {})
            own[piece.which] = matrix, energy
            if len(own) == len(parts[piece.pair.name]) and piece.pair.name not in finished:
                found = [own[i] for i in range(len(own))]
                yield Measured(piece.pair, [one for one, _ in found], sum(energy for _, energy in found))


def encoded(
    pairing: Pairing,
    wanted: list[tuple[Pair, list[int]]],
    finished: Collection[str],
    method: str,
    seed: int,
    device: torch.device,
) -> Iterator[tuple[Pair, list[Factors | None]]]:
    """(pair, factors of its matrices, None at rank 0) of every tensor, as soon as the last of them is there.

    wanted: tensors and the ranks of their matrices, some above 0;  finished: names of those that need not be made:
    batches that have others are as they would be without.
    """
    parts = {pair.name: pieces(pairing, pair, ranks) for pair, ranks in wanted}
    asked = [piece for own in parts.values() for piece in own if piece.rank]
    done: dict[str, dict[int, Factors | None]] = {
        name: {piece.which: None for piece in own if not piece.rank} for name, own in parts.items()
    }
    for batch, read in _read(pairing, asked, device, finished):
        made = compress_many(
            _deltas(read), [piece.rank for piece in batch], [piece.pair.name for piece in batch], method, seed
        )
        for piece, factors in zip(batch, made):
            name = piece.pair.name
            done[name][piece.which] = factors
            if len(done[name]) == len(parts[name]) and name not in finished:
                yield piece.pair, [done[name][i] for i in range(len(parts[name]))]
                done[name] = {}


def _read(
    pairing: Pairing, given: list[Piece], device: torch.device, finished: Collection[str]
) -> Iterator[tuple[list[Piece], Read]]:
    """Batches and their pieces on the device, but for batches all of whose tensors are ``finished``."""
    left = [b for b in batches(given, room_of(device)) if any(piece.pair.name not in finished for piece in b)]
    side = torch.cuda.Stream(device) if device.type == "cuda" else None

    def loaded() -> Iterator[tuple[list[Piece], Read, torch.cuda.Event | None]]:
        for batch in left:
            with torch.cuda.stream(side) if side is not None else nullcontext():
                read = [_loaded(pairing, piece, device) for piece in batch]
                event = side.record_event() if side is not None else None
            yield batch, read, event
            del read

    with ahead(loaded()) as ready:
        for batch, read, event in ready:
            if event is not None:
                stream = torch.cuda.current_stream(device)
                stream.wait_event(event)
                for tensor in (tensor for both in read for tensor in both):
                    tensor.record_stream(stream)
            yield batch, read
            del read


def _loaded(pairing: Pairing, piece: Piece, device: torch.device) -> tuple[Tensor, Tensor]:
    """(the fine-tune's matrix, the base's) on the device; an error names the tensor."""
    both = []
    shape = pairing.base.shape(piece.pair.base_name or "")
    try:
        for model, name in ((pairing.finetuned, piece.pair.name), (pairing.base, piece.pair.base_name or "")):
            matrix = piece.of(model.load(name), shape)
            if device.type == "cuda":
                pinned = torch.empty(matrix.shape, dtype=matrix.dtype, pin_memory=True)
                both.append(pinned.copy_(matrix).to(device, non_blocking=True))
            else:
                both.append(matrix.to(device, copy=True))
            model.release(name)
    except Exception as error:
        error.add_note(f"while {piece.pair.name} was read")
        raise
    return both[0], both[1]


def _deltas(read: Read) -> Tensor:
    """finetuned - base: float32 [B, m, n]."""
    first, _ = read[0]
    deltas = first.new_empty((len(read), *first.shape), dtype=torch.float32)
    for delta, (finetuned, base) in zip(deltas, read):
        torch.sub(finetuned.float(), base.float(), out=delta)
    read.clear()  # what was read is not needed any more
    return deltas
