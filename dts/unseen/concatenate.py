"""Factors of a mixture: sum_i gamma_i U_i diag(sigma_i) V_i is one product of the factors side by side."""

import torch

from dts.codec import Factors, Part, compress_tensor
from dts.codec.factors import code_gram
from dts_kernels.layout import PackedFactors, pack, unpack
from dts_kernels.reference import factor_values


def concatenated(members: list[tuple[float, Factors]]) -> Factors:
    """The exact mixture of factors of equal shape, gamma scaled into sigma; components in order of their size.

    ``norm`` is the mixture's own (of the components, not the samples) and ``squared_error`` 0, so that its prefixes are
    refitted to the mixture.
    Raises ValueError unless `side_by_side`.
    """
    if not side_by_side(members):
        raise ValueError("these factors do not fit side by side: other zero rows or columns, levels, or parts")
    first = members[0][1]
    u, v = (torch.cat([unpack(getattr(f.packed, side), f.rank) for _, f in members], dim=1) for side in "uv")
    sigma = torch.cat([gamma * f.packed.sigma for gamma, f in members])
    u_values, v_values = factor_values(PackedFactors(pack(u), pack(v), sigma))
    order = (sigma.abs() * u_values.norm(dim=0) * v_values.norm(dim=0)).argsort(descending=True, stable=True)
    wide = sigma.double()
    norm = (wide @ code_gram(u_values, v_values) @ wide).clamp(min=0).sqrt().item()
    packed = PackedFactors(pack(u[:, order]), pack(v[:, order]), sigma[order].contiguous())
    samples = tuple(sample.times(gamma) for gamma, f in members for sample in f.samples)
    parts = (Part("residual", packed.rank),)
    return Factors(packed, first.shape, first.rows, first.columns, parts, norm, 0.0, samples)


def mixed_factors(members: list[tuple[float, Factors]], name: str | None = None) -> tuple[Factors, bool]:
    """(factors of the mixture, whether they are exact); where they cannot be, encoded anew at the sum of the ranks,
    without samples, whose noise would be all there is to encode."""
    if side_by_side(members):
        return concatenated(members), True
    members = [(gamma, f.residual()) for gamma, f in members]
    dense = sum(gamma * f.reconstruct() for gamma, f in members)
    return compress_tensor(dense, rank=sum(f.rank for _, f in members), name=name), False


def side_by_side(members: list[tuple[float, Factors]]) -> bool:
    """Whether the factors cover the same rows and columns in the same code.

    The code has no zero: a row one member does not have cannot be written for it.
    """
    first = members[0][1]
    return all(
        f.shape == first.shape
        and _same(f.rows, first.rows)
        and _same(f.columns, first.columns)
        and f.packed.levels is None
        and all(part.kind == "residual" for part in f.parts)
        for _, f in members
    )


def _same(a, b) -> bool:
    return a is b or a is not None and b is not None and torch.equal(a, b)
