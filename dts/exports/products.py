"""The difference of one parameter as a product ``left @ right`` of two dense factors, which is what a LoRA holds.

Components give it exactly: their codes are small integers, so ``v`` is right and ``sigma u`` is left, each element one
float32 product without rounding (by levels of method "paper": rounded once).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dts import sums
from dts.adapter import Entry
from dts_kernels.layout import PackedFactors
from dts_kernels.reference import factor_values


@dataclass(frozen=True)
class Product:
    """left [m, k], right [k, n], float32;  error: ||delta - left right||^2;  energy: ||delta||^2."""

    left: Tensor
    right: Tensor
    energy: float
    error: float = 0.0

    def to(self, dtype: torch.dtype) -> Product:
        """Rounded to a dtype, with what that adds to the error (as if it had nothing to do with the rest of it)."""
        left, right = self.left.to(dtype), self.right.to(dtype)
        if torch.equal(left.float(), self.left) and torch.equal(right.float(), self.right):
            return Product(left, right, self.energy, self.error)
        wide = [tensor.double() for tensor in (self.left, left, self.right, right)]
        rounding = energy(torch.cat([wide[0], -wide[1]], 1), torch.cat(wide[2:]))
        return Product(left, right, self.energy, self.error + rounding)


def energy(left: Tensor, right: Tensor) -> float:
    """||left right||_F^2, without making the product."""
    left, right = left.double(), right.double()
    return max(0.0, float(((left.T @ left) * (right @ right.T)).sum()))


def is_low_rank(entry: Entry) -> bool:
    """Is the difference the product of what is stored: components alone, or a small matrix that is raw?"""
    if entry.kind == "delta":
        return True
    factors = entry.factors
    if entry.kind != "factors" or isinstance(factors, list):
        return False
    return factors is None or all(isinstance(data, PackedFactors) for data in factors.stored)


def rank_of(entry: Entry) -> int:
    """k of `exactly`."""
    return min(entry.shape[0], _width(entry)) if entry.kind == "delta" else entry.rank


def _width(entry: Entry) -> int:
    return torch.Size(entry.shape[1:]).numel()


def exactly(entry: Entry) -> tuple[Tensor, Tensor]:
    """(left [m, k], right [k, n]) in float32 of an entry that `is_low_rank`; k is `rank_of` it."""
    m, n, k = entry.base_shape[0], _width(entry), rank_of(entry)
    if entry.kind == "delta":
        delta = entry.delta().reshape(m, n)
        return (delta, torch.eye(n)) if n <= m else (torch.eye(m), delta)
    left, right = torch.zeros(m, k), torch.zeros(k, n)
    factors = entry.factors
    assert not isinstance(factors, list)  # is_low_rank
    if factors is None or not k:
        return left, right
    u, v = factor_values(factors.packed)
    left[slice(None) if factors.rows is None else factors.rows] = u * factors.packed.sigma
    right[:, slice(None) if factors.columns is None else factors.columns] = v.T
    return left, right


def truncated(left: Tensor, right: Tensor, rank: int) -> Product:
    """The best product of this rank, by the singular values of ``left @ right``, which is not made."""
    whole = energy(left, right)
    if left.shape[1] <= rank:
        return Product(left, right, whole)
    (q, a), (p, b) = torch.linalg.qr(left.double()), torch.linalg.qr(right.double().T)
    u, sigma, v = torch.linalg.svd(a @ b.T, full_matrices=False)
    return _of_svd(q @ u[:, :rank], sigma, v[:rank] @ p.T, rank, whole)


def of_dense(delta: Tensor, rank: int) -> Product:
    """The best product of this rank of a dense matrix [m, n], by the eigenvectors of its smaller Gram matrix."""
    wide = delta.double()
    if delta.shape[0] < delta.shape[1]:
        turned = of_dense(delta.T, rank)
        return Product(turned.right.T.contiguous(), turned.left.T.contiguous(), turned.energy, turned.error)
    whole = sums.energy(delta)
    squares, vectors = torch.linalg.eigh(wide.T @ wide)
    sigma, v = squares.flip(0).clamp(min=0).sqrt(), vectors.flip(1).T
    kept = v[: min(rank, len(sigma))]
    return _of_svd(wide @ kept.T / sigma[: len(kept)].clamp(min=1e-300), sigma, kept, len(kept), whole)


def _of_svd(u: Tensor, sigma: Tensor, v: Tensor, rank: int, whole: float) -> Product:
    """u [m, rank], v [rank, n]; the roots of sigma on both sides, so that neither side is out of a half's range."""
    root = sigma[:rank].sqrt()
    rest = float(sigma[rank:].square().sum())
    return Product((u * root).float(), (root[:, None] * v).float(), whole, rest)


def dense(entry: Entry) -> Tensor:
    """The difference as a matrix [m, n], float32, of any entry of kind "factors" or "delta"."""
    return entry.delta().reshape(entry.base_shape[0], -1)


def stacked(products: list[tuple[Tensor, Tensor]], starts: list[int], rows: int) -> tuple[Tensor, Tensor]:
    """One product of several runs of rows of a fused matrix: the left ones on a block diagonal.

    starts: the row at which each begins;  rows: of the fused matrix.
    """
    if len(products) == 1 and products[0][0].shape[0] == rows:
        return products[0]
    ranks = [left.shape[1] for left, _ in products]
    whole = torch.zeros(rows, sum(ranks))
    for (left, _), start, first in zip(products, starts, torch.tensor([0, *ranks]).cumsum(0).tolist()):
        whole[start : start + left.shape[0], first : first + left.shape[1]] = left
    return whole, torch.cat([right for _, right in products])
