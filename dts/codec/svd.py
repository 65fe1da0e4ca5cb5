"""Singular vectors for the residual codec, from the Gram matrix of the short side."""

import torch
from torch import Tensor

ROWS, COLUMNS = 1024, 512  # of a matrix that are multiplied at a time
EXACT_BELOW = 640  # short sides up to here: a whole eigendecomposition costs less than subspace iteration
OVERSAMPLING, ITERATIONS = 16, 1


def gram(x: Tensor, fast: bool = False) -> Tensor:
    """The lower triangle of x^T x in float64, which is all that `torch.linalg.eigh` reads: x float32 [m, n] -> [n, n].

    In chunks of rows, and of columns, of which what is above the triangle is left out (zeros): x^T x is symmetric.
    fast: float32 within a chunk, at half the cost; right to about 1e-6 of the largest element.
    """
    total = x.new_zeros(x.shape[1], x.shape[1], dtype=torch.float64)
    for rows in x.split(ROWS):
        rows = rows if fast else rows.double()
        for first in range(0, x.shape[1], COLUMNS):
            own = rows[:, first : first + COLUMNS]
            total[first:, first : first + COLUMNS] += rows[:, first:].T @ own
    return total


def exact_svd(x: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """The largest ``rank`` singular triplets; fewer where the rest are no larger than float32's rounding of x.

    x: float32 [m, n].  Returns u [m, k], s [k] descending, vh [k, n], float32.  The float64 Gram matrix resolves
    singular values down to about 1e-8 of the largest, finer than the elements of x themselves do.
    """
    if x.shape[0] < x.shape[1]:
        u, s, vh = exact_svd(x.T, rank)
        return vh.T, s, u.T
    energy, v = torch.linalg.eigh(gram(x))
    s, v = energy.flip(0)[:rank].clamp(min=0).sqrt(), v.flip(1)[:, :rank]
    count = significant(s, x.shape)
    s, v = s[:count], v[:, :count]
    u = torch.cat([rows.double() @ v / s for rows in x.split(ROWS)])
    return u.float(), s.float(), v.T.float()


def significant(s: Tensor, shape) -> int:
    """How many of the descending singular values s are more than float32's rounding of a matrix of that shape."""
    return int((s > s[0] * max(shape) * torch.finfo(torch.float32).eps).sum())


def subspace_svd(x: Tensor, rank: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """About `exact_svd`, by subspace iteration (Halko, Martinsson, Tropp 2011, algorithm 5.1) from a seeded start."""
    width = min(rank + OVERSAMPLING, *x.shape)
    generator = torch.Generator().manual_seed(seed)
    basis = x @ torch.randn(x.shape[1], width, generator=generator).to(x.device)
    for _ in range(ITERATIONS):
        basis = torch.linalg.qr(x.T @ torch.linalg.qr(basis)[0])[0]
        basis = x @ basis
    basis = torch.linalg.qr(basis)[0]
    left, s, vh = exact_svd(basis.T @ x, rank)
    return basis @ left, s, vh


def leading_svd(x: Tensor, rank: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Whichever of the two is cheaper."""
    if min(x.shape) <= EXACT_BELOW or rank + OVERSAMPLING >= min(x.shape):
        return exact_svd(x, rank)
    return subspace_svd(x, rank, seed)
