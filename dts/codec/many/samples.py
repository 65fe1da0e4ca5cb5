"""What a sketch keeps of what components leave, of many matrices: `dts.codec.parts.sample` without waits in between."""

import torch
from torch import Tensor

from dts_kernels.layout import PackedFactors, pack
from dts_kernels.samples import Samples, columns

from ..codes import RMS, THRESHOLD
from ..parts import sample
from .components import Encoded
from .host import exact_products, to_host


def encode(
    deltas: Tensor, made: Encoded, strides: list[int | None], seed: int
) -> list[tuple[PackedFactors, Samples | None, float]]:
    """(components, sample, squared relative error of both) of each, all on the CPU.

    deltas: float32 [B, m, n];  made: its components;  strides: as `sample.encode` takes them, None: no sample.
    """
    *packed, energies = to_host([*made.packed(), made.energy])
    factors, energy = made.factors(*packed), energies.tolist()
    taken = [i for i, stride in enumerate(strides) if stride is not None]
    own = {i: sample.seed_of(factors[i][0], seed) for i in taken}
    with exact_products():
        drawn = {i: drawn_from(deltas[i], made, i, strides[i] or 1, own[i]) for i in taken}
    numbers = to_host([codes for codes, _ in drawn.values()] + [about for _, about in drawn.values()]) if taken else []
    found = dict(zip(taken, zip(numbers[: len(taken)], numbers[len(taken) :])))
    result: list[tuple[PackedFactors, Samples | None, float]] = []
    for i, (components, error) in enumerate(factors):
        stride = strides[i]
        if stride is None:
            result.append((components, None, error))
            continue
        codes, about = found[i]
        scale, lost, kept_codes, square = about.tolist()
        rest = Samples(codes, scale, stride, own[i], (deltas.shape[1], deltas.shape[2])).times(stride)
        noise = lost + rest.scale**2 * square - 2 * rest.scale * kept_codes
        result.append((components, rest, noise / energy[i]))
    return result


def drawn_from(delta: Tensor, made: Encoded, which: int, stride: int, own: int) -> tuple[Tensor, Tensor]:
    """(packed codes, float64 [4]: scale before the stride, ||left||^2, elements times codes, ||codes||^2)."""
    m, n = delta.shape
    at = columns((m, n), stride, own, delta.device)
    real = at < n
    at.clamp_(max=n - 1)
    kept, lost = delta.new_empty(at.shape), delta.new_zeros((), dtype=torch.float64)
    v = made.v[which] * made.sigma[which][:, None]
    for first in range(0, m, max(1, sample.ROWS_AT_ONCE // n)):
        here = slice(first, first + max(1, sample.ROWS_AT_ONCE // n))
        left = torch.addmm(delta[here], made.u[which][:, here].T, v, alpha=-1)
        torch.gather(left, 1, at[here], out=kept[here])
        lost += torch.linalg.vector_norm(left, dtype=torch.float64).square()
    kept *= real
    magnitude, count = kept.abs().double(), real.sum()
    scale = (magnitude.square().sum() / count).sqrt() / RMS
    for _ in range(sample.REFINEMENTS):
        large = magnitude > THRESHOLD * scale
        values = (1 + 3 * large.double()) * real
        scale = (magnitude * values).sum() / values.square().sum()
    square = values.square().sum()
    scale = (magnitude.square().sum() / square).sqrt()
    codes = pack(((kept < 0) * 2 + large).byte())
    return codes, torch.stack([scale, lost, (magnitude * values).sum(), square])
