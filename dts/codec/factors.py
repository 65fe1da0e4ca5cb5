"""One compressed matrix: its parts, where they sit in the full matrix, and what was lost.

A delta [m, n] often has rows or columns that are exactly zero (embedding rows no token touched).
They are removed before coding, so the parts are of the compact [m', n'] matrix, whose sum they are, and ``rows`` and
``columns`` say where its rows and columns go.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from dts_kernels.layout import PackedFactors
from dts_kernels.samples import Samples

from .index import index_to_disk
from .parts import PartKind, components, kind_of, with_tensors


@dataclass(frozen=True)
class Part:
    """What one part is, in words.

    kind: how it was made, "residual" | "paper" of components, else its kind's name;  rank: its components, 0 of others
    """

    kind: str
    rank: int


@dataclass(frozen=True)
class Factors:
    """One compressed matrix [m, n]; see the module's docstring.

    stored: the parts, of kinds in `dts.codec.parts`, in order; what kernels compute with
    shape: (m, n); rows, columns: int64 indices of the kept rows and columns, None = all
    norm: ||delta||_F of the delta that was compressed
    squared_error: ||delta - delta_hat||_F^2 / ||delta||_F^2 of all of it; None where it is not known
    """

    stored: tuple[Any, ...]
    shape: tuple[int, int]
    rows: Tensor | None
    columns: Tensor | None
    norm: float
    squared_error: float | None

    @property
    def parts(self) -> tuple[Part, ...]:
        """What is stored; components of rank 0 are nothing."""
        parts = [(kind, Part(kind.label(data), kind.rank(data))) for kind, data in self._known()]
        return tuple(part for kind, part in parts if part.rank or not kind.ranked)

    @property
    def rank(self) -> int:
        """Components."""
        return sum(kind.rank(data) for kind, data in self._known())

    @property
    def compact_shape(self) -> tuple[int, int]:
        """(m', n'), without zero rows and columns."""
        m, n = (size if kept is None else len(kept) for kept, size in zip((self.rows, self.columns), self.shape))
        return m, n

    @property
    def packed(self) -> PackedFactors:
        """The components; of rank 0 where there are none."""
        for data in self.stored:
            if isinstance(data, PackedFactors):
                return data
        return components.none(self.compact_shape)

    @property
    def samples(self) -> tuple[Samples, ...]:
        """The samples: one, of a mixture one a member, or none."""
        return tuple(data for data in self.stored if isinstance(data, Samples))

    def low_rank(self) -> "Factors":
        """Its components alone, which can be cut anywhere; itself if it has nothing else."""
        runs = self.runs
        if len(runs) == len(self.stored):
            return self
        error = None if runs else 1.0
        if len(runs) == 1:
            errors = runs[0][0].prefix_errors(runs[0][1], self.norm)
            error = None if errors is None else errors[-1].item()
        return replace(self, stored=tuple(data for _, data in runs), squared_error=error)

    @property
    def nbytes(self) -> int:
        """Bytes of its tensors on disk, without file headers."""
        return self.index_nbytes + sum(kind.nbytes(data) for kind, data in self._known())

    @property
    def index_nbytes(self) -> int:
        """Of them, those that say which rows and columns are kept."""
        kept = zip((self.rows, self.columns), self.shape)
        return sum(index_to_disk(index, size).nbytes for index, size in kept if index is not None)

    @property
    def largest(self) -> float:
        """A bound on the size of the matrix's elements; NaN if a number in it is."""
        return sum(kind.largest(data) for kind, data in self._known())

    def with_tensors(self, change: Callable[[Tensor], Tensor]) -> "Factors":
        """The same with every tensor of its parts changed: moved to a device, cloned."""
        return replace(self, stored=tuple(with_tensors(data, change) for data in self.stored))

    def reconstruct(self, rank: int | None = None, dtype: torch.dtype = torch.float32) -> Tensor:
        """The dense delta [m, n], of the first ``rank`` components if given."""
        if rank is not None and rank < self.rank:
            return self.prefix(rank).reconstruct(dtype=dtype)
        first, *more = self._known() or [(kind_of(self.packed), self.packed)]
        compact = first[0].dense(first[1], dtype)
        for kind, data in more:
            compact += kind.dense(data, dtype)
        if self.rows is None and self.columns is None:
            return compact
        full = compact.new_zeros(self.shape)
        rows = torch.arange(self.shape[0]) if self.rows is None else self.rows
        columns = torch.arange(self.shape[1]) if self.columns is None else self.columns
        full[rows[:, None], columns] = compact
        return full

    def of_rows(self, rows: Tensor, count: int) -> "Factors":
        """The same as factors of those ``rows`` (int64, ascending) of a matrix with ``count`` rows, else zero."""
        return replace(self, shape=(count, self.shape[1]), rows=rows if self.rows is None else rows[self.rows])

    def prefix(self, rank: int) -> "Factors":
        """The first ``rank`` components, without parts of other kinds if those are fewer than there are.

        ``squared_error`` is exact where the components know it, else None; see `PartKind.prefix`.
        """
        if rank < 0:
            raise ValueError(f"a prefix has a rank of 0 or more, not {rank}")
        if rank >= self.rank:
            return self
        left, kept, errors = rank, list[Any](), list[float | None]()
        for kind, data in self._known():
            if left and kind.ranked:
                taken = min(left, kind.rank(data))
                first, error = kind.prefix(data, taken, self.norm) if taken < kind.rank(data) else (data, None)
                left -= taken
                kept.append(first)
                errors.append(error)
        error = 1.0 if not rank else errors[0] if len(errors) == 1 else None
        return replace(self, stored=tuple(kept), squared_error=error)

    def prefix_errors(self) -> Tensor:
        """Squared relative error of every prefix: float64 [rank + 1], entry k for rank k.

        Raises ValueError where it is not known: of method "paper", and of components of several kinds.
        """
        found = [kind.prefix_errors(data, self.norm) for kind, data in self.runs]
        if len(found) != 1 or found[0] is None:
            labels = ", ".join(kind.label(data) for kind, data in self.runs) or "nothing"
            raise ValueError(f"only residual components know the errors of their prefixes, not {labels}")
        return found[0]

    @property
    def runs(self) -> list[tuple[PartKind[Any], Any]]:
        """(kind, data) of the parts that are components; of all kinds so far there is one at most."""
        return [(kind, data) for kind, data in self._known() if kind.ranked]

    def _known(self) -> list[tuple[PartKind[Any], Any]]:
        return [(kind_of(data), data) for data in self.stored]
