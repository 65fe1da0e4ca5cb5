"""One tensor as a patch of another, bit for bit: NaN, infinities and negative zeros are bits like others.

Elements are taken as unsigned whole numbers b of the base's bits and f of the fine-tune's.  What is stored of each is
c = zigzag(f - b), modulo 2^w of the element's w bits: 0 where they are equal, 1 and 2 for the next number below and
above.  *Measured* on bfloat16 weights that moved by few units in the last place, c takes a tenth less than b XOR f,
whose ones run on where a carry does.

    .changes   c of all elements, or of those that differ
    .gaps      only where those that differ are fewer bytes: how many equal ones stand before each of them, uint32

Both are byte planes (of BLOCK numbers first the lowest byte of each, then the next byte, and so on; then the next
BLOCK) in one zstd frame.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .errors import Undecodable
from .frames import Frame, framed

BLOCK = 1 << 20  # numbers whose planes lie together
UNSIGNED = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}
GAP = np.dtype(np.uint32)
DENSE = 0.9  # share of changed elements from which gaps are not tried: *measured*, they never are fewer bytes then


@dataclass(frozen=True)
class Patch:
    """changed: elements that differ;  changes, gaps: uint8, frames."""

    changed: int
    changes: Tensor
    gaps: Tensor | None = None

    @property
    def tensors(self) -> dict[str, Tensor]:
        """What is stored, by its suffix."""
        return {"changes": self.changes} | ({} if self.gaps is None else {"gaps": self.gaps})


def bits(tensor: Tensor) -> np.ndarray:
    """The elements' bits as unsigned whole numbers [elements]; a view where the tensor is contiguous on the CPU."""
    flat = tensor.detach().cpu().contiguous().view(-1)
    return flat.view(torch.uint8).numpy().view(UNSIGNED[tensor.dtype.itemsize])


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Are dtype, shape and every bit the same?  NaN is equal to the same NaN, and -0 is not 0."""
    return a.dtype == b.dtype and a.shape == b.shape and bool(np.array_equal(bits(a), bits(b)))


def equal_bits(a: Tensor, b: Tensor) -> int:
    """Elements of a and b, of one shape and dtype, that are the same bit for bit."""
    ours, theirs = bits(a), bits(b)
    return int(np.count_nonzero(ours == theirs))


def digest(tensor: Tensor) -> str:
    """16 hex digits of SHA-256 over a tensor's bytes, as they lie in a file."""
    return hashlib.sha256(bits(tensor).data).hexdigest()[:16]


def encode(value: Tensor, base: Tensor) -> Patch | None:
    """What makes ``value`` of ``base``, which has its shape and dtype; None if they are the same bit for bit."""
    ours, theirs = bits(value), bits(base)
    where = np.flatnonzero(ours != theirs)
    if not len(where):
        return None
    blocks = (_planes(_zigzag(ours[i : i + n] - theirs[i : i + n])) for i, n in _runs(len(ours)))
    everything = framed(blocks, ours.nbytes)
    gaps = np.diff(where, prepend=-1) - 1
    if len(where) > DENSE * len(ours) or gaps.max() >= 1 << 32:
        return Patch(len(where), everything)
    only = _zigzag(ours[where] - theirs[where])
    sparse = Patch(len(where), _framed(only), _framed(gaps.astype(GAP)))
    return min(Patch(len(where), everything), sparse, key=lambda patch: sum(t.nbytes for t in patch.tensors.values()))


def check(name: str, patch: Patch, elements: int, itemsize: int) -> None:
    """Raises Undecodable for frames that cannot be those of a tensor of so many elements; nothing is decoded."""
    if not 0 < patch.changed <= elements:
        raise Undecodable(f"{name}: {patch.changed} of {elements} elements cannot have changed")
    _frames(name, patch, elements, np.dtype(UNSIGNED[itemsize]))


def decode(name: str, patch: Patch, base: Tensor) -> Tensor:
    """The value, of the base's shape and dtype, in memory of its own on the CPU.  Raises Undecodable."""
    result = base.detach().cpu().contiguous().clone()
    flat = bits(result)
    changes, gaps = _frames(name, patch, flat.size, flat.dtype)
    last, found = -1, 0
    for first, count in _runs(patch.changed if gaps is not None else flat.size):
        numbers = _numbers(changes, count, flat.dtype)
        found += int(np.count_nonzero(numbers))
        if gaps is None:
            flat[first : first + count] += _unzigzag(numbers)
            continue
        where = np.cumsum(_numbers(gaps, count, GAP).astype(np.int64) + 1) + last
        last = int(where[-1])
        if last >= flat.size:
            raise Undecodable(f"{name}: element {last} of {flat.size} is said to have changed")
        flat[where] += _unzigzag(numbers)
    for frame in (changes, gaps):
        if frame is not None:
            frame.end()
    if found != patch.changed:
        raise Undecodable(f"{name}: {found} elements changed, and {patch.changed} are said to have")
    return result


def _frames(name: str, patch: Patch, elements: int, dtype: np.dtype) -> tuple[Frame, Frame | None]:
    count = elements if patch.gaps is None else patch.changed
    changes = Frame(f"{name}.changes", patch.changes, count * dtype.itemsize)
    return changes, None if patch.gaps is None else Frame(f"{name}.gaps", patch.gaps, count * GAP.itemsize)


def _zigzag(difference: np.ndarray) -> np.ndarray:
    """0, -1, 1, -2, ... of w bits as 0, 1, 2, 3, ..."""
    return (difference << 1) ^ np.negative(difference >> (8 * difference.itemsize - 1))


def _unzigzag(number: np.ndarray) -> np.ndarray:
    return (number >> 1) ^ np.negative(number & 1)


def _runs(count: int) -> Iterator[tuple[int, int]]:
    """(first, how many) of each block of numbers."""
    for first in range(0, count, BLOCK):
        yield first, min(BLOCK, count - first)


def _framed(numbers: np.ndarray) -> Tensor:
    return framed((_planes(numbers[i : i + n]) for i, n in _runs(len(numbers))), numbers.nbytes)


def _planes(numbers: np.ndarray) -> bytes:
    """Little-endian, first the lowest byte of each."""
    return numbers.astype(numbers.dtype.newbyteorder("<")).view(np.uint8).reshape(len(numbers), -1).T.tobytes()


def _numbers(frame: Frame, count: int, dtype: np.dtype) -> np.ndarray:
    planes = np.frombuffer(frame.read(count * dtype.itemsize), np.uint8).reshape(dtype.itemsize, count)
    return np.ascontiguousarray(planes.T).view(dtype.newbyteorder("<")).reshape(count).astype(dtype)
