"""What a method is: which parts it makes of a delta, and how it splits bytes between them.

The *rank* that a method is asked for counts bytes: it is of components (`dts.codec.parts.components`) that would take
them.  A method that makes other parts too, or others, gives back what takes no more.
"""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from .parts import components

Parts = tuple[Any, ...]  # data of registered kinds, of one compact matrix


class Choice(ABC):
    """What can be asked for: a method, or a rule that chooses one.

    about: a sentence for those who choose;
    small: takes matrices of any size, heads and routers too;  rounds_vectors: biases and norms may take 8 bits
    where bytes are asked for;  to_error: may be asked for by the error it leaves.
    """

    name: ClassVar[str]
    about: ClassVar[str] = ""
    small: ClassVar[bool] = False
    rounds_vectors: ClassVar[bool] = True
    to_error: ClassVar[bool] = True

    def for_size(self, in_bytes: bool) -> "Choice":
        """What this is as soon as the size is known; in_bytes: it is a number of bytes, not a rank or an error."""
        return self

    @abstractmethod
    def for_distance(self, moved: float) -> "Method":
        """The method; moved: ||fine-tune - base|| / ||base|| of all matrices of the model together."""


class Method(Choice):
    """One way of making parts.

    rank_limit: the largest rank of a matrix, times min(m, n) of it without its zero rows and columns;
    searches: can find the rank for an error (`encode_to_error`);  note: what explains the squared error, for a report.
    """

    rank_limit: ClassVar[int]
    searches: ClassVar[bool] = False
    note: ClassVar[str] = ""

    def for_distance(self, moved: float) -> "Method":
        return self

    def for_tables(self) -> "Method":
        """The one that makes parts of this method's tables that have a row for each token, all of which moved."""
        return self

    @abstractmethod
    def encode(self, delta: Tensor, rank: int, seed: int = 0) -> tuple[Parts, float]:
        """(parts, squared relative error) at the bytes of ``rank`` components.

        delta: float32 [m, n], not zero, without zero rows and columns, elements of order 1; of any device.
        """

    def encode_many(self, deltas: Tensor, ranks: list[int], seed: int = 0) -> list[tuple[Parts, float]]:
        """`encode` of each of several deltas [B, m, n] of one device, the parts on any."""
        return [self.encode(delta, rank, seed) for delta, rank in zip(deltas, ranks, strict=True)]

    def encode_to_error(self, delta: Tensor, target: float, limit: int, seed: int = 0) -> tuple[Parts, float]:
        """The same, of the smallest rank found up to ``limit`` whose error is at most ``target``."""
        raise ValueError(f"method {self.name!r} cannot be asked for an error")

    @abstractmethod
    def planned(self, rank: int, shape: tuple[int, int]) -> Parts:
        """What `encode` gives of a matrix of this shape, without content: right in every shape and byte."""

    def components(self, rank: int, shape: tuple[int, int]) -> int:
        """Components among the parts that ``rank`` gives."""
        return rank

    def limit(self, asked: int, found: int) -> int:
        """The largest rank worth asking for, where ``asked`` gave only ``found`` components."""
        return found

    def nbytes(self, ranks: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
        """Bytes at each rank, of a matrix [m, n] without zero rows and columns."""
        return components.bytes_at(shape, ranks)

    @abstractmethod
    def left(self, singular: Tensor, ranks: np.ndarray, shape: tuple[int, int]) -> Tensor:
        """Squared relative error expected at the best scale: float64 [len(ranks)], by which bytes are allocated.

        singular: float64 [min(m, n)], the matrix's singular values.
        """

    def error_left(self, error: float) -> float:
        """What an error is multiplied with to get the `left` that gives it: `left` is of the best scale, the error of
        the parts as they are stored."""
        return 1.0

    @abstractmethod
    def predicted_error(self, singular: Tensor, ranks: Any, shape: tuple[int, int] | None) -> Tensor:
        """Expected squared relative error at each rank: float64 [len(ranks)].  shape: None where it is not known."""

    @abstractmethod
    def error_bounds(self, singular: Tensor, ranks: Any, shape: tuple[int, int] | None) -> tuple[Tensor, Tensor]:
        """(lower, upper) bounds of it: float64 [len(ranks)] each; see `dts.codec.spectrum` on what they assume."""
