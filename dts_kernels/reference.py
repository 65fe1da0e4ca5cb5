"""Plain PyTorch: the definition of the truth.  Every other path is tested against this file.

For one row x with the tasks (slot_p, gamma_p) of its routing entry

    y = sum_p  2^-e_p * round( gamma_p * 2^e_p * (x V^T) o sigma ) U^T

with everything but ``round`` in float32 or wider.  ``round`` is the conversion to x.dtype that lets
the second product use 16-bit tensor cores; the power of two 2^e puts the rounded numbers in the range
of x, so that fp16 neither overflows nor underflows.  In float64 ``round`` is the identity and the
formula is exactly  sum_p gamma_p * x Delta_p^T.
"""

import math

import torch
from torch import Tensor

from .layout import VALUES, VALUES_RMS, PackedFactors, unpack


def decode(packed: Tensor, rank: int, levels: Tensor | None = None, dtype=torch.float32) -> Tensor:
    """Disk bytes [rows, ceil(rank/4)] to values [rank columns]: dtype [rows, rank].

    levels: float [4], the values of codes 0..3; None means +1, +4, -1, -4.
    """
    values = torch.tensor(VALUES, device=packed.device) if levels is None else levels
    return values.to(dtype)[unpack(packed, rank).int()]


def factor_values(factors: PackedFactors, dtype=torch.float32) -> tuple[Tensor, Tensor]:
    """(U [m, k], V [n, k]) as numbers, without sigma."""
    u_levels, v_levels = (None, None) if factors.levels is None else factors.levels
    return decode(factors.u, factors.rank, u_levels, dtype), decode(factors.v, factors.rank, v_levels, dtype)


def range_exponent(factors: PackedFactors) -> int:
    """The e of the module's formula: 2^e * sigma_max * ||v|| is about 1, estimated without unpacking."""
    largest = max(map(abs, factors.scales), default=0.0)
    rms = VALUES_RMS if factors.levels is None else factors.levels[1].square().mean().sqrt().item()
    size = largest * rms * math.sqrt(max(factors.shape[1], 1))
    return max(-126, min(126, -math.ceil(math.log2(size)))) if 0 < size < math.inf else 0


def product(x: Tensor, factors: PackedFactors, gamma=1.0, exponent: int | None = None) -> Tensor:
    """x Delta^T for one task: x [rows, n] -> float32 (float64 for float64 x) [rows, m].

    gamma: a number or a tensor [rows].
    """
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    exponent = range_exponent(factors) if exponent is None else exponent
    u, v = factor_values(factors, wide)
    sigma = factors.sigma.to(wide) * 2.0**exponent
    shrunk = (x.to(wide) @ v) * sigma
    shrunk = shrunk * (gamma[:, None].to(wide) if isinstance(gamma, Tensor) else gamma)
    return (shrunk.to(x.dtype).to(wide) @ u.T) * 2.0**-exponent


def delta_linear(
    x: Tensor,
    factors: dict[int, PackedFactors],
    slots: Tensor,
    weights: Tensor,
    out_features: int,
    exponents: dict[int, int] | None = None,
) -> Tensor:
    """Each row's delta product, summed over its tasks.

    x: [rows, n]; factors: slot -> factors; slots: int [R, P], -1 = none; weights: float32 [R, P];
    rows is a multiple of R and row i follows routing entry i // (rows / R).
    Returns float32 (float64 for float64 x) [rows, out_features].
    """
    rows, entries = x.shape[0], slots.shape[0]
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    out = x.new_zeros(rows, out_features, dtype=wide)
    if not rows:
        return out
    slots, weights = (t.repeat_interleave(rows // entries, 0) for t in (slots, weights))
    for place in range(slots.shape[1]):
        for slot in slots[:, place].unique().tolist():
            if slot in factors:
                chosen = (slots[:, place] == slot).nonzero()[:, 0]
                exponent = None if exponents is None else exponents[slot]
                out[chosen] += product(x[chosen], factors[slot], weights[chosen, place], exponent)
    return out


def reconstruct(factors: PackedFactors, dtype=torch.float32) -> Tensor:
    """The dense delta U diag(sigma) V^T: dtype [m, n]."""
    u, v = factor_values(factors, dtype)
    return (u * factors.sigma.to(dtype)) @ v.T


def embedding(ids: Tensor, factors: PackedFactors, dtype=torch.float32) -> Tensor:
    """Rows ``ids`` (int64 [rows]) of the dense delta: dtype [rows, n]."""
    u_levels, v_levels = (None, None) if factors.levels is None else factors.levels
    u = decode(factors.u[ids], factors.rank, u_levels, dtype)
    return (u * factors.sigma.to(dtype)) @ decode(factors.v, factors.rank, v_levels, dtype).T


def delta_embedding(
    ids: Tensor,
    factors: dict[int, PackedFactors],
    slots: Tensor,
    weights: Tensor,
    in_features: int,
    dtype=torch.float32,
) -> Tensor:
    """Each row's embedding delta, summed over its tasks; the arguments are those of `delta_linear`.

    ids: int64 [rows], -1 = zeros.  Returns dtype [rows, in_features].
    """
    rows = ids.shape[0]
    out = torch.zeros(rows, in_features, dtype=dtype, device=ids.device)
    if not rows:
        return out
    slots, weights = (t.repeat_interleave(rows // slots.shape[0], 0) for t in (slots, weights))
    for place in range(slots.shape[1]):
        for slot in slots[:, place].unique().tolist():
            if slot in factors:
                chosen = ((slots[:, place] == slot) & (ids >= 0)).nonzero()[:, 0]
                out[chosen] += weights[chosen, place, None].to(dtype) * embedding(ids[chosen], factors[slot], dtype)
    return out


def rounded_numbers(codes: Tensor, scales: Tensor, bits: int, count: int) -> Tensor:
    """float32 [count]: number i is a code times scale i // 64; bit j of its code is bit ``bits`` i + j of the bytes.

    codes: uint8 [ceil(bits count / 8)], two's complement;  scales: [ceil(count / 64)].
    """
    each = codes.int()[:, None] >> torch.arange(8, device=codes.device) & 1
    each = each.flatten()[: bits * count].view(count, bits)
    whole = (each << torch.arange(bits, device=codes.device)).sum(1) - (each[:, -1] << bits)
    return whole.float() * scales.float().repeat_interleave(64)[:count]
