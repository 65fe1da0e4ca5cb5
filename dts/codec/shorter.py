"""A sketch cut to fewer components and a share of its sample, from what is stored alone.

The first components of many are rounded beside those that follow, which take up what rounding leaves, so that by
themselves they explain less than as many that were made alone.  Made anew (``again``), components are those of the
matrix D that all of them are, at their least squares scale: what they leave of Delta is not seen by them, but D is most
of it.  With share = ||D||^2 / ||Delta||^2 and share' of ||D||^2 that the new ones explain, theirs of Delta is share
share', so sigma, which has share'^(-1/4) of it (`dts.codec.scale`), becomes share^(-1/4) times as large.
"""

from dataclasses import replace

import torch
from torch import Tensor

from dts_kernels.layout import PackedFactors
from dts_kernels.reference import factor_values, reconstruct
from dts_kernels.samples import SHARES

from . import residual, scale
from .compress import THREADED, one_thread
from .factors import Factors
from .parts import components, sample

Kept = tuple[int, tuple[int, int] | None]  # components and the share of the sample, None for none of it; not nothing


def is_sketch(factors: Factors) -> bool:
    """Is it components that know their prefixes, of a norm that can be theirs, or none, and one sample of what they
    leave?"""
    packed = factors.packed
    if len(factors.stored) != 2 or len(factors.samples) != 1 or packed.levels is not None:
        return False
    return factors.norm > 0 and (not packed.rank or 0 < explained(packed, factors.norm) <= 1)  # NaN is neither


def shortened(factors: Factors, kept: Kept, again: bool) -> Factors:
    """So many of a sketch's components and a share of its sample, which is then of what those components leave.

    again: components made anew, where they are fewer, rather than the first ones.  ``squared_error`` is known only
    where the first components, or all that there is, are kept.  Raises ValueError for what is no sketch, and for more
    than it has.
    """
    rank, share = kept
    if not is_sketch(factors):
        raise ValueError("only components without levels and one sample of what they leave can be cut to a share of it")
    packed, (whole,) = factors.packed, factors.samples
    larger = share is not None and SHARES.index(share) < SHARES.index(whole.share)
    if not 0 <= rank <= packed.rank or larger or kept == (0, None):
        raise ValueError(f"{packed.rank} components and a share of {whole.share} have no {rank} and {share}")
    if kept == (packed.rank, whole.share):
        return factors
    if share is None and (rank == packed.rank or not again):
        return factors.low_rank().prefix(rank)
    now = packed if rank else components.none(factors.compact_shape)
    if 0 < rank < packed.rank:
        now = made_again(packed, rank, factors.norm) if again else scale.refitted(packed, rank, factors.norm)[0]
    rest = () if share is None else (sample.thinned(whole, share, packed, now),)
    return replace(factors, stored=(now, *rest), squared_error=None)


def planned(factors: Factors, kept: Kept, again: bool) -> Factors:
    """`shortened` without the content of what is made anew: right in every shape and byte."""
    rank, share = kept
    if kept == (factors.packed.rank, factors.samples[0].share):
        return factors
    if share is None and not again:
        return factors.low_rank().prefix(rank)
    stored = (components.planned(rank, factors.compact_shape),)
    rest = () if share is None else (sample.planned_share(factors.samples[0], share),)
    return replace(factors, stored=stored + rest, squared_error=None)


def made_again(packed: PackedFactors, rank: int, norm: float) -> PackedFactors:
    """At most ``rank`` components of those of a delta of this norm, see the module's docstring."""
    share = explained(packed, norm)
    dense = reconstruct(packed) * share**scale.GAIN
    largest = dense.abs().max().item()
    if not largest or not share:
        return scale.refitted(packed, rank, norm)[0]
    with one_thread(dense.numel() < THREADED):
        made, _ = residual.encode(dense / largest, rank)
    return components.KIND.times(made, largest * share**-scale.GAIN)


def explained(packed: PackedFactors, norm: float) -> float:
    """Share of the energy of a delta of this norm that the components explain at their least squares scale."""
    return scale.prefix_shares(packed, norm)[-1].item()


def singular_values(packed: PackedFactors, norm: float) -> Tensor:
    """Of the matrix that components are at their least squares scale: float64 [k], descending.

    From U^T U and V^T V alone: with a Cholesky factor L of the first, they are the roots of the eigenvalues of
    L^T diag(sigma) V^T V diag(sigma) L.
    """
    sigma = packed.sigma.double() * explained(packed, norm) ** scale.GAIN
    u, v = (side.double().T @ side.double() for side in factor_values(packed))
    ridge = scale.RIDGE * u.diagonal().mean() * torch.eye(len(u), dtype=u.dtype)
    lower = torch.linalg.cholesky(u + ridge)
    inner = lower.T @ (sigma[:, None] * v * sigma) @ lower
    return torch.linalg.eigvalsh(inner).flip(0).clamp(min=0).sqrt()
