"""Method "sketch": a quarter of the bytes for residual components, the rest for an unbiased sample of what they leave.

What residual components leave out is missing in every layer, and pulls the model's answers the same way in all of
them; noise of equal size does not add up.  With T what the components leave, one element of T of every G is kept, at
places that follow from a seed (`dts_kernels.samples`), G times as large:  E[sample] = T, an error that is noise alone
and that other rows do not share.  Values are rounded to the codes, with one scale that keeps their norm.

The noise is several times the delta (``squared_error`` > 1), yet *measured*, the answers of language models and of text
encoders are closer to the fine-tune's than the residual method's at equal bytes (benchmarks/quality/FINDINGS.md).
"""

import hashlib

import torch
from torch import Tensor

from dts.sums import dot, energy
from dts_kernels.layout import PackedFactors, pack, packed_width
from dts_kernels.reference import decode, reconstruct
from dts_kernels.samples import STRIDES, Samples, columns, groups_of

from . import residual

SHARE = 4  # the components have one in so many of the bytes
BLOCK = 4  # components that share a byte
ROWS_AT_ONCE = 1 << 23  # elements of what the components leave that are held at a time
REFINEMENTS = 6  # of the scale and the codes in turn
KEPT = 0.8795  # of the energy of normal elements when rounded at the best scale; the cosine's square


def split(rank: int, shape: tuple[int, int]) -> tuple[int, int | None]:
    """(residual components, stride of the sample) that take no more bytes than ``rank`` residual components.

    shape: (m, n) without zero rows and columns.  Stride None where there is no room for a sample.
    """
    m, n = shape
    component = sum(shape) / BLOCK + 4  # bytes
    first = min(rank, max(1, round(rank / (SHARE * BLOCK))) * BLOCK)
    room = (rank - first) * component
    if room < m:
        return rank, None
    stride = -(-n // (BLOCK * int(room // m)))
    if stride not in STRIDES:
        return rank, None
    room -= m * packed_width(groups_of(n, stride))  # strides have gaps where they are small
    return first + int(room // (BLOCK * component)) * BLOCK, stride


def encode(delta: Tensor, rank: int, seed: int = 0) -> tuple[PackedFactors, float, tuple[Samples, ...]]:
    """Components and sample, at the bytes of ``rank`` residual components.

    delta: float32 [m, n], not zero, elements of order 1.  Returns the components, the squared relative error of both
    together, and the sample (none where nothing is left or there is no room).
    """
    shape = tuple(delta.shape)
    first, stride = split(rank, shape)
    packed, error = residual.encode(delta, first, seed)
    if packed.rank < first or stride is None:
        return packed, error, ()
    # equal places in two layers would make their noise alike
    content = f"{seed}".encode() + packed.sigma.cpu().numpy().tobytes()
    own = int.from_bytes(hashlib.sha256(content).digest()[:4], "little")
    at = columns(shape, stride, own, delta.device)
    real = at < shape[1]
    kept, lost = missing(delta, packed, at.clamp_(max=shape[1] - 1))
    kept *= real
    codes, scale = rounded(kept, real)
    sample = Samples(pack(codes), scale, stride, own, shape).times(stride)
    values = decode(sample.codes, sample.groups) * sample.scale * real
    noise = lost + energy(values) - 2 * dot(values, kept)
    return packed, noise / energy(delta), (sample,)


def missing(delta: Tensor, packed: PackedFactors, at: Tensor) -> tuple[Tensor, float]:
    """What the components leave of delta: its elements at columns ``at`` [m, count], and the energy of all of it.

    Made some rows at a time: never held whole.
    """
    kept, lost = delta.new_empty(at.shape), 0.0
    rows = max(1, ROWS_AT_ONCE // max(1, delta.shape[1]))
    for first in range(0, len(delta), rows):
        here = slice(first, first + rows)
        left = delta[here] - reconstruct(PackedFactors(packed.u[here], packed.v, packed.sigma, packed.levels))
        torch.gather(left, 1, at[here], out=kept[here])
        lost += energy(left)
    return kept, lost


def rounded(kept: Tensor, real: Tensor) -> tuple[Tensor, float]:
    """(codes uint8, the scale that keeps the norm) of elements; those not ``real`` are zero and do not count."""
    size = kept.abs()
    scale = (energy(size) / int(real.sum())) ** 0.5 / residual.RMS
    for _ in range(REFINEMENTS):
        large = size > residual.THRESHOLD * scale
        values = (1 + 3 * large.float()) * real
        scale = dot(size, values) / energy(values)
    return ((kept < 0) * 2 + large).byte(), (energy(kept) / energy(values)) ** 0.5


def expected_error(left, stride: int | None):
    """Squared relative error of both together, where the components leave ``left`` (float or tensor).

    With q what an element t is rounded to, kept once in G:  E (G q - t)^2 / G + (1 - 1 / G) t^2, summed, is
    (1 + G - 2 sqrt(KEPT)) || T ||^2.
    """
    return left if stride is None else left * (1 + stride - 2 * KEPT**0.5)
