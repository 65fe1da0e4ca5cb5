"""What a budget needs to know of one delta, and what it would become and cost at every rank."""

import math
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from dts import sums
from dts.adapter.budget import BLOCK, Curve
from dts.adapter.sizes import HEADER_BYTES
from dts.codec import Factors, many, singular_values
from dts.codec.compress import checked, compacted, look_at
from dts.codec.method import Method

UNKNOWN = 0.5  # stands for an error that is not predicted, where only bytes are planned


@dataclass
class Matrix:
    """One delta [m, n]: which rows and columns are not zero, its norm, and (if asked for) its singular values, float64.

    measured: how many of those are; the others are estimated, and no rank above is planned.  None: all are.
    A *rank* is what a method is asked for, see `dts.codec.method`.
    """

    shape: tuple[int, int]
    rows: Tensor | None
    columns: Tensor | None
    norm: float
    singular: Tensor | None = None
    measured: int | None = None
    known: dict = field(default_factory=dict, repr=False, compare=False)  # curves and predicted errors made before

    @classmethod
    def of(cls, delta: Tensor, name: str, spectrum: bool, device=None) -> "Matrix":
        """Raises Unencodable for NaN or infinite elements."""
        m, n = delta.shape
        rows, columns, compact = compacted(checked(delta, name, device))
        norm = sums.norm(compact)
        values = singular_values(compact).cpu() if spectrum and norm else None
        return cls((m, n), rows, columns, norm, values)

    @classmethod
    def of_many(cls, deltas: Tensor, names: list[str], spectrum: bool, count: int | None = None) -> list["Matrix"]:
        """Of each of deltas float32 [B, m, n], measured together on the device they are on.

        count: of the singular values only so many are measured, where that is cheaper, and the others estimated by
        what they have together: enough for ranks that are lower.
        """
        looks, shape = look_at(deltas, names), (deltas.shape[1], deltas.shape[2])
        full = [i for i, look in enumerate(looks) if look.full and look.norm]
        values, size = dict[int, Tensor](), None
        if spectrum and full:
            own = deltas if len(full) == len(looks) else deltas[torch.tensor(full, device=deltas.device)]
            with many.exact_products():
                (found,) = many.to_host([many.leading_values(own, count)])
            size = None if found.shape[1] == min(shape) else found.shape[1]
            values = {i: with_tail(one, looks[i].norm, min(shape)) for i, one in zip(full, found)}
        return [
            cls(shape, None, None, look.norm, values.get(i), size)
            if i in full
            else cls.of(deltas[i], names[i], spectrum)
            for i, look in enumerate(looks)
        ]

    @cached_property
    def compact_shape(self) -> tuple[int, int]:
        """Without zero rows and columns."""
        m, n = (size if kept is None else len(kept) for kept, size in zip((self.rows, self.columns), self.shape))
        return m, n

    @property
    def elements(self) -> int:
        """Elements without zero rows and columns."""
        return math.prod(self.compact_shape)

    @property
    def spectrum(self) -> Tensor:
        """Its singular values; raises ValueError where they were not asked for."""
        if self.singular is None:
            raise ValueError("this matrix was measured without its singular values")
        return self.singular

    def planned(self, rank: int, method: Method) -> Factors | None:
        """Factors of this rank without content: right in every shape, with the predicted error."""
        if not rank or not self.norm:
            return None
        error = UNKNOWN if self.singular is None else self.predicted(rank, method)
        parts = method.planned(rank, self.compact_shape)
        return Factors(parts, self.shape, self.rows, self.columns, self.norm, error)

    def predicted(self, rank: int, method: Method) -> float:
        """Predicted squared relative error."""
        if (rank, method.name) not in self.known:
            error = method.predicted_error(self.spectrum, [rank], self.compact_shape).item()
            self.known[rank, method.name] = error
        return self.known[rank, method.name]

    def most(self, method: Method) -> int:
        """The largest rank."""
        limit = method.rank_limit * min(self.compact_shape) if self.norm else 0
        return limit if self.measured is None else min(limit, self.measured)

    def curve(self, method: Method, limit: int | None = None) -> Curve:
        """Bytes and error left at every rank worth having, at most ``limit``."""
        if ("curve", method.name, limit) not in self.known:
            self.known["curve", method.name, limit] = self._curve(method, limit)
        return self.known["curve", method.name, limit]

    def _curve(self, method: Method, limit: int | None) -> Curve:
        if not self.norm:
            return Curve(np.zeros(1, int), np.zeros(1, int), np.zeros(1))
        most = self.most(method) if limit is None else min(self.most(method), limit)
        ranks = np.unique(np.append(np.arange(0, most, BLOCK), most))
        errors = method.left(self.spectrum, ranks, self.compact_shape).numpy()
        errors[0] = 1.0
        index = Factors((), self.shape, self.rows, self.columns, self.norm, None).index_nbytes
        nbytes = method.nbytes(ranks, self.compact_shape) + np.where(ranks > 0, index + HEADER_BYTES, 0)
        return Curve(ranks, nbytes, errors * self.norm**2)


def with_tail(values: Tensor, norm: float, size: int) -> Tensor:
    """All ``size`` singular values of a matrix of this ``norm`` whose largest ``values``, float64 and descending, are
    known: the squares of the others fall by one factor, from the last known one, to what is left of norm^2."""
    missing = size - len(values)
    if not missing:
        return values
    last, left = values[-1].item() ** 2, max(0.0, norm**2 - values.square().sum().item())
    steps = np.arange(1, missing + 1)
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if last * (middle**steps).sum() < left else (low, middle)
    tail = (last * low**steps) ** 0.5
    return torch.cat([values, torch.from_numpy(tail)])
