"""Tables whose rows moved unevenly, as embeddings do: the rows that moved most, and how many of them are worth keeping.

A row of an embedding moves as often as its token occurs, and the decay of a trainer moves all others a little.  A
component over every row pays for rows that hold nothing; over the first rows it costs a fraction of that.  The rows
beyond are left at the base, like a matrix that the budget leaves out.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dts import sums
from dts.adapter.budget import Curve, hull
from dts.shapes import FEWEST

UNEVEN = 0.5  # share of its rows that would hold the energy, if all of them held as much; above it all are kept
SHARES = (0.3, 0.5, 0.7, 0.9, 0.97)  # of the energy, in the rows that may be kept


@dataclass(frozen=True)
class Leading:
    """The first rows of a compact matrix [m', n'], by their energy.

    count: how many;  energy: theirs, squared Frobenius norm;  singular: float64 [min(count, n')], their singular values
    """

    count: int
    energy: float
    singular: Tensor


@dataclass(frozen=True)
class Uneven:
    """What may be kept of such a table.

    order: int64 [m'], its rows, those that moved most first;  moving: as how many rows, all alike, its energy counts;
    choices: fewest rows first, the last one all of them
    """

    order: Tensor
    moving: float
    choices: tuple[Leading, ...]

    def rows(self, count: int) -> Tensor | None:
        """int64 [count], ascending: the rows of the compact matrix that are kept; None for all of them."""
        return None if count == len(self.order) else self.order[:count].sort().values


def uneven(compact: Tensor, rows: int, spectrum: Callable[[Tensor], Tensor]) -> Uneven | None:
    """None for a matrix whose rows moved alike, as those of linear layers do, and for small ones.

    compact: float32 [m', n'] without the zero rows of a matrix of so many ``rows``;
    spectrum: matrix -> its singular values.
    """
    if rows < FEWEST or not compact.numel():
        return None
    energies = sums.row_energies(compact).cpu()
    total, moving = energies.sum(), _moving(energies).item()
    if not moving < UNEVEN * rows:
        return None
    order = energies.argsort(descending=True, stable=True)
    first = energies[order].cumsum(0)
    counts = sorted({int((first < share * total).sum()) + 1 for share in SHARES} | {len(order)})
    choices = []
    for count in counts:
        kept = order[:count].sort().values.to(compact.device)
        part = compact if count == len(order) else compact.index_select(0, kept)
        choices.append(Leading(count, first[count - 1].item(), spectrum(part).cpu()))
    return Uneven(order, moving, tuple(choices))


def uneven_among(deltas: Tensor) -> list[bool]:
    """Which of deltas float32 [B, m, n], none of them zero, are such tables; waits for the device once."""
    if deltas.shape[1] < FEWEST:
        return [False] * len(deltas)
    moving = torch.stack([_moving(sums.row_energies(delta)) for delta in deltas])
    return (moving < UNEVEN * deltas.shape[1]).tolist()


def _moving(energies: Tensor) -> Tensor:
    return energies.sum() ** 2 / energies.square().sum()


def best_choices(
    table: Uneven, ranks: np.ndarray, nbytes: Callable[[int], np.ndarray], left: Callable[[Leading], np.ndarray]
) -> np.ndarray:
    """Which of the choices is taken at each rank: int64 [len(ranks)], more components never have fewer rows.

    ranks: ascending, 0 first;  nbytes: count -> bytes at each rank;  left: choice -> relative error at each rank of its
    own rows, NaN for ranks that they cannot have.  Taken are those on the lower convex hull of (bytes, error) of all.
    """
    points = [(0, 1.0, 0, 0)]
    possible = np.empty((len(table.choices), len(ranks)), bool)
    for c, choice in enumerate(table.choices):
        errors, share = left(choice), choice.energy / table.choices[-1].energy
        possible[c] = ~np.isnan(errors)
        points += [
            (int(size), 1 - share * (1 - error), int(rank), c)
            for rank, size, error in zip(ranks, nbytes(choice.count), errors)
            if rank and not np.isnan(error)
        ]
    sizes, errors, of_rank, of_choice = (np.array(column) for column in zip(*sorted(points)))
    taken = possible.argmax(0)  # the fewest rows that can have so many components
    for i in hull(Curve(of_rank, sizes, errors)):
        at = np.searchsorted(ranks, of_rank[i])
        taken[at] = max(taken[at], of_choice[i])
    return np.maximum.accumulate(taken)
