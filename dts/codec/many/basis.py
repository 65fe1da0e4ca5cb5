"""Singular vectors and values of many matrices at once: `dts.codec.svd` in products and Cholesky factors.

A Householder factorisation is a chain of small steps; the Cholesky factor of a Gram matrix in float64 gives the same
basis with two products ("CholeskyQR2", Fukaya, Nakatsukasa, Yanagisawa, Yamamoto 2014; the shift that keeps it going
where columns are nearly dependent is that of their paper of 2020).
"""

import torch
from torch import Tensor

from ..svd import EXACT_BELOW, ITERATIONS, OVERSAMPLING

ROWS = 8192  # of matrices that are float64 at a time
SHIFT = 1e-11  # of a Gram matrix with a diagonal of ones: above float64's rounding, and float32's squared
TINY = 1e-150  # a norm^2 that may be divided by
PASSES = 2  # after which a basis is orthonormal to float32's rounding
VALUE_ITERATIONS = 2  # where values are wanted, not a start


def orthonormal(x: Tensor, passes: int = PASSES) -> Tensor:
    """A basis of the columns of x float32 [B, m, w], w <= m: float32 [B, m, w].

    One pass makes a basis that is orthonormal to about the square of x's condition times 1e-16: enough between two
    products.
    """
    wide = x.double()
    for _ in range(passes):
        gram = wide.mT @ wide
        size = gram.diagonal(dim1=1, dim2=2).clamp(min=TINY).rsqrt()
        gram *= size[:, :, None] * size[:, None, :]
        gram.diagonal(dim1=1, dim2=2).add_(SHIFT)
        lower = torch.linalg.cholesky_ex(gram)[0]
        wide = torch.linalg.solve_triangular(lower, (wide * size[:, None, :]).mT, upper=False).mT
    return wide.float()


def gram_of(x: Tensor) -> Tensor:
    """x^T x in float64: x float32 [B, m, n] -> [B, n, n]."""
    total = x.new_zeros(x.shape[0], x.shape[2], x.shape[2], dtype=torch.float64)
    for rows in x.split(ROWS, dim=1):
        wide = rows.double()
        total.baddbmm_(wide.mT, wide)
    return total


def exact(x: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """The largest ``rank`` singular triplets of x float32 [B, m, n]: u [B, m, k], s [B, k] descending, vh [B, k, n].

    u of what is no more than rounding (`significant`) means nothing.
    """
    if x.shape[1] < x.shape[2]:
        u, s, vh = exact(x.mT, rank)
        return vh.mT, s, u.mT
    energy, v = torch.linalg.eigh(gram_of(x))
    s, v = energy.flip(1)[:, :rank].clamp(min=TINY).sqrt(), v.flip(2)[:, :, :rank]
    u = torch.cat([(rows.double() @ v / s[:, None, :]).float() for rows in x.split(ROWS, dim=1)], dim=1)
    return u, s.float(), v.mT.float()


def significant(s: Tensor, shape: tuple[int, int]) -> Tensor:
    """How many of descending singular values [B, k] are more than float32's rounding of such a matrix: int64 [B]."""
    return (s > s[:, :1] * max(shape) * torch.finfo(torch.float32).eps).sum(1)


def subspace(x: Tensor, width: int, seed: int, iterations: int) -> Tensor:
    """A basis [B, m, width] near the leading left singular vectors (Halko, Martinsson, Tropp 2011, algorithm 5.1)."""
    generator = torch.Generator(x.device).manual_seed(seed)
    basis = x @ torch.randn(x.shape[2], width, generator=generator, device=x.device)
    for _ in range(iterations):
        basis = x @ orthonormal(x.mT @ orthonormal(basis, 1), 1)
    return orthonormal(basis)


def leading(x: Tensor, rank: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """The leading triplets as `exact` gives them, nearly where that is cheaper."""
    width = rank + OVERSAMPLING
    if min(x.shape[1:]) <= EXACT_BELOW or width >= min(x.shape[1:]):
        return exact(x, rank)
    basis = subspace(x, width, seed, ITERATIONS)
    left, s, vh = exact(basis.mT @ x, rank)
    return basis @ left, s, vh


def leading_values(x: Tensor, count: int | None, seed: int = 0) -> Tensor:
    """Singular values of x float32 [B, m, n], descending: float64 [B, count], all of them (None: min(m, n)) where
    ``count`` is most of them."""
    x = x.mT if x.shape[1] < x.shape[2] else x
    n = x.shape[2]
    if count is not None and n > EXACT_BELOW and 2 * (count + OVERSAMPLING) < n:
        x = subspace(x, count + OVERSAMPLING, seed, VALUE_ITERATIONS).mT @ x
        x = x.mT
    else:
        count = n
    return torch.linalg.eigvalsh(gram_of(x)).flip(1)[:, :count].clamp(min=0).sqrt()
