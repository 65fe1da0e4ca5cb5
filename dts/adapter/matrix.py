"""What a budget needs to know of one delta, and what it would become and cost at every rank."""

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from dts import sums
from dts.adapter.budget import BLOCK, Curve
from dts.adapter.sizes import HEADER_BYTES
from dts.adapter.uneven import Leading, Uneven, best_choices, uneven, uneven_among
from dts.codec import Factors, many, singular_values
from dts.codec.compress import checked, compacted, look_at
from dts.codec.method import Method
from dts.shapes import is_of_tokens

NO_SPECTRUM = "this matrix was measured without its singular values"
COUNTS = 32  # rows for each column that a table of tokens counts as, where bytes are 1 % of fp32
UNKNOWN = 0.5  # stands for an error that is not predicted, where only bytes are planned


@dataclass(frozen=True)
class Kept:
    """What of a delta is compressed at some rank: the rows and columns of it (int64, None: all), of this shape, norm
    and singular values (None: not known)."""

    rows: Tensor | None
    columns: Tensor | None
    shape: tuple[int, int]
    norm: float
    singular: Tensor | None


@dataclass
class Matrix:
    """One delta [m, n]: which rows and columns are not zero, its norm, and (if asked for) its singular values, float64.

    measured: how many of those are; the others are estimated, and no rank above is planned.  None: all are.
    A *rank* is what a method is asked for, see `dts.codec.method`.  uneven: of a table whose rows moved unevenly, of
    which each rank keeps some (`kept`); only where singular values are asked for.  tokens: it is a table of tokens.
    """

    shape: tuple[int, int]
    rows: Tensor | None
    columns: Tensor | None
    norm: float
    singular: Tensor | None = None
    measured: int | None = None
    uneven: Uneven | None = None
    tokens: bool = False
    known: dict = field(default_factory=dict, repr=False, compare=False)  # curves and predicted errors made before

    @classmethod
    def of(cls, delta: Tensor, name: str, spectrum: bool, device=None) -> "Matrix":
        """Raises Unencodable for NaN or infinite elements."""
        m, n = delta.shape
        rows, columns, compact = compacted(checked(delta, name, device))
        norm = sums.norm(compact)
        tokens = is_of_tokens(name, (m, n))
        if not spectrum or not norm:
            return cls((m, n), rows, columns, norm, tokens=tokens)
        table = uneven(compact, m, singular_values)
        values = singular_values(compact).cpu() if table is None else table.choices[-1].singular
        return cls((m, n), rows, columns, norm, values, uneven=table, tokens=tokens)

    @classmethod
    def of_many(cls, deltas: Tensor, names: list[str], spectrum: bool, count: int | None = None) -> list["Matrix"]:
        """Of each of deltas float32 [B, m, n], measured together on the device they are on.

        count: of the singular values only so many are measured, where that is cheaper, and the others estimated by
        what they have together: enough for ranks that are lower.
        """
        looks, shape = look_at(deltas, names), (deltas.shape[1], deltas.shape[2])
        tables = uneven_among(deltas) if spectrum else [False] * len(looks)
        full = [i for i, look in enumerate(looks) if look.full and look.norm and not tables[i]]
        values, size = dict[int, Tensor](), None
        if spectrum and full:
            own = deltas if len(full) == len(looks) else deltas[torch.tensor(full, device=deltas.device)]
            with many.exact_products():
                (found,) = many.to_host([many.leading_values(own, count)])
            size = None if found.shape[1] == min(shape) else found.shape[1]
            values = {i: with_tail(one, looks[i].norm, min(shape)) for i, one in zip(full, found)}
        return [
            cls(shape, None, None, look.norm, values.get(i), measured=size, tokens=is_of_tokens(names[i], shape))
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
        """Elements without zero rows and columns; of a table whose rows moved unevenly as many as would hold its
        energy, if all of them held as much."""
        m, n = self.compact_shape
        return m * n if self.uneven is None else round(self.uneven.moving) * n

    @property
    def spectrum(self) -> Tensor:
        """Its singular values; raises ValueError where they were not asked for."""
        if self.singular is None:
            raise ValueError(NO_SPECTRUM)
        return self.singular

    @property
    def table(self) -> bool:
        """Has it a row for each token, all of which moved: is it an output layer, or embeddings that are one too?
        (Embeddings alone move where their tokens occur.)"""
        return self.tokens and self.singular is not None and self.uneven is None

    def counts(self, share: float) -> float:
        """Elements that a budget counts, where it is that share of the model in fp32: see `counted`."""
        return counted(self.elements, self.shape, share) if self.table else self.elements

    def method(self, asked: Method) -> Method:
        """The one that makes its parts."""
        return asked.for_tables() if self.table else asked

    def kept(self, rank: int, method: Method) -> Kept:
        """What is compressed at this rank."""
        choice = self._choice(rank, method)
        rows = None if self.uneven is None or choice is None else self.uneven.rows(choice.count)
        if choice is None or rows is None:
            return Kept(self.rows, self.columns, self.compact_shape, self.norm, self.singular)
        rows = rows if self.rows is None else self.rows[rows]
        return Kept(rows, self.columns, (choice.count, self.compact_shape[1]), choice.energy**0.5, choice.singular)

    def planned(self, rank: int, method: Method) -> Factors | None:
        """Factors of this rank without content: right in every shape, with the predicted error."""
        if not rank or not self.norm:
            return None
        method, kept = self.method(method), self.kept(rank, method)
        error = UNKNOWN if self.singular is None else self.predicted(rank, method)
        return Factors(method.planned(rank, kept.shape), self.shape, kept.rows, kept.columns, kept.norm, error)

    def predicted(self, rank: int, method: Method) -> float:
        """Predicted squared relative error, of what is kept."""
        method = self.method(method)
        if (rank, method.name) not in self.known:
            kept = self.kept(rank, method)
            if kept.singular is None:
                raise ValueError(NO_SPECTRUM)
            error = method.predicted_error(kept.singular, [rank], kept.shape).item()
            self.known[rank, method.name] = error
        return self.known[rank, method.name]

    def most(self, method: Method) -> int:
        """The largest rank."""
        method = self.method(method)
        limit = method.rank_limit * min(self.compact_shape) if self.norm else 0
        return limit if self.measured is None else min(limit, self.measured)

    def curve(self, method: Method, limit: int | None = None) -> Curve:
        """Bytes and error left at every rank worth having, at most ``limit``."""
        method = self.method(method)
        if ("curve", method.name, limit) not in self.known:
            self.known["curve", method.name, limit] = self._curve(method, limit)
        return self.known["curve", method.name, limit]

    def _curve(self, method: Method, limit: int | None) -> Curve:
        if not self.norm:
            return Curve(np.zeros(1, int), np.zeros(1, int), np.zeros(1))
        most = self.most(method) if limit is None else min(self.most(method), limit)
        ranks = self._ranks(most)
        if self.uneven is None:
            return Curve(ranks, self._bytes(method, ranks), self._left(method, ranks, self.spectrum) * self.norm**2)
        nbytes, errors = np.zeros(len(ranks), int), np.zeros(len(ranks))
        taken = [self._choice(rank, method) for rank in ranks.tolist()]
        for choice in self.uneven.choices:
            here = np.array([one is choice for one in taken])
            if here.any():
                nbytes[here] = self._bytes(method, ranks[here], choice.count)
                left = self._left(method, ranks[here], choice.singular, choice.count)
                errors[here] = self.norm**2 - choice.energy * (1 - left)
        return Curve(ranks, nbytes, errors)

    def _ranks(self, most: int) -> np.ndarray:
        return np.unique(np.append(np.arange(0, most, BLOCK), most))

    def _bytes(self, method: Method, ranks: np.ndarray, count: int | None = None) -> np.ndarray:
        """With headers; count: rows kept, None for all."""
        rows, shape = self.rows, self.compact_shape
        if count is not None and self.uneven is not None:
            rows, shape = self.uneven.rows(count) if count < shape[0] else rows, (count, shape[1])
        index = Factors((), self.shape, rows, self.columns, self.norm, None).index_nbytes
        return method.nbytes(ranks, shape) + np.where(ranks > 0, index + HEADER_BYTES, 0)

    def _left(self, method: Method, ranks: np.ndarray, singular: Tensor, count: int | None = None) -> np.ndarray:
        shape = self.compact_shape if count is None else (count, self.compact_shape[1])
        errors = method.left(singular, ranks, shape).numpy()
        errors[ranks == 0] = 1.0
        return errors

    def _choice(self, rank: int, method: Method) -> Leading | None:
        """The rows that a rank keeps; None where all are."""
        if self.uneven is None:
            return None
        if ("choices", method.name) not in self.known:
            self.known["choices", method.name] = self._choices(self.uneven, method)
        ranks, taken = self.known["choices", method.name]
        at = min(np.searchsorted(ranks, rank), len(ranks) - 1)  # between two ranks: the rows of the larger one
        return self.uneven.choices[taken[at]]

    def _choices(self, table: Uneven, method: Method) -> tuple[np.ndarray, np.ndarray]:
        """(ranks, which of the choices each takes)."""
        ranks = self._ranks(self.most(method))

        def left(choice: Leading) -> np.ndarray:
            errors = self._left(method, ranks, choice.singular, choice.count)
            errors[ranks > method.rank_limit * min(choice.count, self.compact_shape[1])] = np.nan
            return errors

        return ranks, best_choices(table, ranks, lambda count: self._bytes(method, ranks, count), left)


def counted(elements: int, shape: tuple[int, ...], share: float) -> float:
    """As how many elements a `Matrix.table` of this shape counts (`dts.adapter.budget.levelled`).

    Few of its rows are likely answers anywhere, and what the blocks lack as a whole matters most where bytes are few:
    of n columns ``COUNTS`` n rows at 1 %, and by the root of the share more or fewer.  *Measured*
    (benchmarks/quality/FINDINGS.md).
    """
    return min(elements, COUNTS * (share / 0.01) ** 0.5 * shape[1] ** 2)


def with_tail(values: Tensor, norm: float, size: int) -> Tensor:
    """All ``size`` singular values of a matrix of this ``norm`` whose largest ``values``, float64 and descending, are
    known: the squares of the others fall by one factor, from the last known one, to what is left of norm^2.  All alike
    where none is known."""
    if not len(values):
        return torch.full((size,), norm / size**0.5, dtype=torch.float64)
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
