"""What a kind of part is.  The parts of a matrix are added up to it; each is data of one class of `dts_kernels`.

A kind knows how its data is stored (tensors, and the *fragment*: what a row of ``dts_config.json`` says of them) and
read again from files of others, how large it is, what it is as a matrix, and what becomes of it where an adapter is cut
or mixed.  How data is made of a delta is the business of a method (`dts.codec.method`).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from dts import sums
from dts_kernels.layout import PackedFactors

Data = TypeVar("Data")


class Load(ABC):
    """What is stored of one matrix."""

    @abstractmethod
    def __call__(self, suffix: str) -> Tensor | None:
        """The tensor whose name has this suffix, None if there is none."""

    def packed(self) -> PackedFactors | None:
        """Its components, whose tensors then need not be made to be looked at; None: ask for each."""
        return None


class PartKind(ABC, Generic[Data]):
    """One kind.  Data is of the compact matrix [m', n'], without the delta's zero rows and columns.

    name: in messages;  data: the class;  key: of the fragment in a row;
    version: of the first format that has this kind;
    alone: may it be all there is of a matrix;  ranked: is it a run of components, whose first ones are a part too.
    """

    name: ClassVar[str]
    data: type[Data]
    key: ClassVar[str]
    version: ClassVar[int]
    alone: ClassVar[bool] = True
    ranked: ClassVar[bool] = False

    # -- on disk

    @abstractmethod
    def tensors(self, place: int, data: Data) -> dict[str, Tensor]:
        """Suffix -> tensor as stored.  place: which of the matrix's parts of this kind it is, from 0."""

    @abstractmethod
    def fragment(self, parts: list[Data]) -> list:
        """What the tensors do not say, of all parts of this kind of one matrix: plain data for JSON."""

    @abstractmethod
    def fits(self, fragment: Any) -> bool:
        """Can this be a fragment?  Asked before `decode`, of what may come from anywhere."""

    @abstractmethod
    def decode(self, name: str, fragment: Any, shape: tuple[int, int], load: Load) -> list[Data]:
        """The inverse of `tensors` and `fragment`; shape: of the compact matrix;  name: of the tensor, for messages.

        Raises Undecodable for tensors that are missing or do not fit the fragment, the shape or each other.
        """

    def nbytes(self, data: Data) -> int:
        """Bytes of its tensors on disk, without file headers."""
        return sum(tensor.nbytes for tensor in self.tensors(0, data).values())

    # -- as a matrix

    @abstractmethod
    def shape(self, data: Data) -> tuple[int, int]:
        """(m', n')."""

    @abstractmethod
    def dense(self, data: Data, dtype: torch.dtype = torch.float32) -> Tensor:
        """The matrix: dtype [m', n'], a tensor of its own.  The definition of what the data means."""

    @abstractmethod
    def largest(self, data: Data) -> float:
        """A bound on the size of the matrix's elements; NaN if a number in the data is."""

    def energy(self, data: Data) -> float:
        """||dense||_F^2."""
        return sums.energy(self.dense(data))

    @abstractmethod
    def times(self, data: Data, factor: float) -> Data:
        """A multiple."""

    def weighted(self, members: list[tuple[float, Data]]) -> list[Data] | None:
        """Parts whose sum is sum_i gamma_i data_i exactly, of [(gamma, data)]; None where they cannot be written."""
        return [self.times(data, gamma) for gamma, data in members]

    # -- where an adapter is cut

    def label(self, data: Data) -> str:
        """How this data was made, in a word."""
        return self.name

    def rank(self, data: Data) -> int:
        """Components; 0 of a kind that has none."""
        return 0

    def largest_component(self, data: Data) -> float:
        """Size of its largest component, beside which rounding is seen; 0 without any."""
        return 0.0

    def prefix(self, data: Data, rank: int, norm: float) -> tuple[Data, float | None]:
        """The first ``rank`` components, and the squared relative error they leave of a delta of this ``norm``.

        rank: 1 to one less than all.  The error is None where it is not known.  Only of ``ranked`` kinds.
        """
        raise ValueError(f"{self.name}s have no prefixes")

    def prefix_bytes(self, data: Data, ranks: Any) -> Any:
        """Bytes of prefixes of these ``ranks``, an int64 array of NumPy; 0 of none.  Only of ``ranked`` kinds."""
        raise ValueError(f"{self.name}s have no prefixes")

    def prefix_left(self, data: Data, norm: float) -> Tensor:
        """Squared relative error of every prefix at its best scale, known or estimated: float64 [rank + 1].

        norm: of the delta.  Only of ``ranked`` kinds.
        """
        raise ValueError(f"{self.name}s have no prefixes")

    def prefix_errors(self, data: Data, norm: float) -> Tensor | None:
        """Exact squared relative error of every `prefix`: float64 [rank + 1]; None where they are not known."""
        return None


def with_tensors(data: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The same data with every tensor of it changed: moved to a device, cloned."""
    return replace(
        data,
        **{
            field.name: change(value)
            for field in fields(data)
            if isinstance(value := getattr(data, field.name), Tensor)
        },
    )


def packed_bits_end(stored: Tensor, codes: int) -> bool:
    """Are the bits beyond the last of ``codes`` 2-bit codes of every row 0?  stored: uint8 [rows, ceil(codes / 4)]."""
    return not codes % 4 or not stored.numel() or int(np.maximum.reduce(stored.numpy()[:, -1])) < 1 << 2 * (codes % 4)
