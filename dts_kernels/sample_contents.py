"""What the table of an arena of samples points to, looked at once a table: kernels follow no offset that was not."""

from typing import Any

from torch import Tensor

from .arena import pieces
from .contents import version_of
from .layout import packed_width
from .operands import StoredSamples
from .sample_table import read
from .sample_words import words_of
from .samples import elements_of

HELD = "_dts_sample_words"  # the attribute of a table that keeps what was seen of it


class Seen:
    """The tensors that were looked at, and the shapes of matrices that fit them.

    own: the shape that a bank says of what it writes, whatever it writes; None of others' tables;
    memory: what the table points into, which stays while the table does;
    launches: what `gpu.repeat_samples` keeps of products with them.
    """

    def __init__(self, stored: StoredSamples, own: tuple[int, int] | None, memory: list[Tensor]):
        self.memory = memory
        self.launches: dict[Any, Any] = {}
        self.words, (_, table, self.starts, self.scales) = stored.codes[0], stored
        self.own, self.shapes = own, set() if own is None else {own}
        self.versions = _versions(table, self.starts)

    def __reduce__(self):
        return type(None), ()  # a copy of the table is looked at for itself

    def __deepcopy__(self, memo):
        return None

    def of(self, stored: StoredSamples) -> bool:
        return self.words is stored.codes[0] and self.starts is stored.starts

    def knows(self, stored: StoredSamples, shape: tuple[int, int]) -> bool:
        if shape == self.own:
            return True
        return shape in self.shapes and self.versions == _versions(stored.table, stored.starts)


def _versions(*tensors: Tensor) -> tuple[int | None, ...]:
    """How often they were changed in place; None where nobody counts."""
    return tuple(map(version_of, tensors))


def trust(stored: StoredSamples, shape: tuple[int, int], memory: list[Tensor]) -> None:
    """What a bank of matrices [m, n] writes itself is not read back from the device; memory: all of the bank's."""
    setattr(stored.table, HELD, Seen(stored, shape, memory))


def fit(stored: StoredSamples, shape: tuple[int, int]) -> None:
    """Raise ValueError unless every sample of the arena, of matrices [m, n], lies inside it.

    Reads device memory, but for a bank's own table and one that was seen before and is unchanged.
    """
    seen = getattr(stored.table, HELD, None)
    if seen is not None and seen.of(stored) and seen.knows(stored, shape):
        return
    _read(stored, shape)
    if seen is None or seen.own is None:
        if seen is None or not seen.of(stored) or seen.versions != _versions(stored.table, stored.starts):
            seen = Seen(stored, None, [tensor for _, tensor in pieces(stored.codes[0])])
            setattr(stored.table, HELD, seen)
        seen.shapes.add(shape)


def _read(stored: StoredSamples, shape: tuple[int, int]) -> None:
    (words, *_), table, starts, _ = stored
    memory = [(first, first + tensor.numel()) for first, tensor in pieces(words)]
    at, (m, n), wrong = starts.tolist(), shape, []
    if at[0] < 0 or any(b < a for a, b in zip(at, at[1:])) or at[-1] > table.shape[0]:
        wrong.append(f"starts {at} do not rise from 0 to at most {table.shape[0]} samples")
    for row in [] if wrong else table[: at[-1]].tolist():
        try:
            slot, offset, stride, _, share = read(row)
        except ValueError as error:
            wrong.append(str(error))
            continue
        stop = offset + words_of(m, packed_width(elements_of(n, stride, share)))
        if offset % 2 or not any(first <= offset and stop <= last for first, last in memory):
            wrong.append(
                f"a sample in slot {slot} of stride {stride} with words from {offset} on does not fit "
                f"{' and '.join(f'{first} to {last}' for first, last in memory)} for {list(shape)}"
            )
    if wrong:
        raise ValueError("the samples' table does not fit their words: " + "; ".join(wrong))
