"""Method "sketch": half of the bytes for residual components, half for an unbiased sketch of what they leave.

What residual components leave out is missing in every layer, and pulls the model's answers the same way in all of
them; noise of equal size does not add up.  With T what the first half leaves and Omega [n, k] of random signs,
E[Omega Omega^T] = k I,

    T  ~  (1/k) (T Omega) Omega^T

errs by noise alone, k components for the bytes of one side: T Omega is stored, in the codes and with a sigma a column
that keeps its norm; Omega follows from a seed.  The longer side of the matrix is the one that is not stored.  SHRINK
of the sketch is added: between nothing, all bias, and all of it, all noise.

The noise is several times the delta (``squared_error`` > 1), yet *measured* on a language model of 210 matrices the
answers are closer to the fine-tune's than the residual method's at equal bytes; on encoders of 37 matrices they are
not (benchmarks/quality/FINDINGS.md).  At run time it is more components: k is up to n / min(m, n) + 1 times what
residual components of the same bytes would be.

**Omega**, for any language to repeat: of SHAKE-256 over the ASCII text "dts sketch <seed> <n>", with N the least
power of two >= n, the first 8 N bytes are N little-endian keys, whose stable ascending order begins with the columns
c_1 ... c_k, and the lowest bits of the next n bytes are h_i;  Omega_ij = (-1)^(h_i + popcount(i and c_j)), rows of a
subsampled randomised Hadamard matrix.
"""

import hashlib

import numpy as np
import torch
from torch import Tensor

from dts_kernels.layout import PackedFactors, pack
from dts_kernels.reference import reconstruct

from . import residual
from .factors import Part, longer_side

SHRINK = 0.85  # of the sketch that is added
BLOCK = 4  # components that share a byte
REFINEMENTS = 6  # of a column's scale and its codes in turn
LOW = 256  # row numbers that share their higher bits


def split(rank: int, shape: tuple[int, int]) -> tuple[int, int]:
    """(residual components, columns of the sketch) that take no more bytes than ``rank`` residual components.

    shape: (m, n) without zero rows and columns.  Few components are all residual; as many columns as Omega's order
    are exact, and the most there are.
    """
    first = min(rank, -(-rank // (2 * BLOCK)) * BLOCK)
    left = (rank - first) * (sum(shape) / BLOCK + 4)
    return first, min(BLOCK * int(left // (min(shape) + 4 * BLOCK)), order_of(max(shape)))


def order_of(size: int) -> int:
    """The order of the Hadamard matrix: the least power of two >= size."""
    return 1 << (size - 1).bit_length()


def directions(size: int, count: int, seed: int) -> Tensor:
    """Codes (+1, -1) of Omega: uint8 [size, count]."""
    order = order_of(size)
    stream = hashlib.shake_256(f"dts sketch {seed} {size}".encode("ascii")).digest(8 * order + size)
    columns = np.argsort(np.frombuffer(stream[: 8 * order], "<u8"), kind="stable")[:count]
    flips = np.frombuffer(stream[8 * order :], np.uint8) & 1
    # the parity of i and c is that of their higher bits plus that of their lower ones: two small tables
    high = _parity(np.arange(-(-size // LOW))[:, None] & columns // LOW)
    low = _parity(np.arange(min(LOW, order))[:, None] & columns % LOW)
    negative = (high[:, None] ^ low).reshape(-1, count)[:size] ^ flips[:, None]
    return torch.from_numpy(negative << 1)


def _parity(x: np.ndarray) -> np.ndarray:
    """Of the ones among the bits of x (below 2^32): uint8."""
    for shift in (16, 8, 4, 2, 1):
        x = x ^ x >> shift
    return (x & 1).astype(np.uint8)


def encode(delta: Tensor, rank: int, seed: int = 0) -> tuple[PackedFactors, float, tuple[Part, ...]]:
    """Both halves, at the bytes of ``rank`` residual components.

    delta: float32 [m, n], not zero, elements of order 1.  Returns the factors, the squared relative error,
    and what they are made of.
    """
    first, count = split(rank, tuple(delta.shape))
    packed, error = residual.encode(delta, first, seed)
    if packed.rank < first or not count:  # nothing is left, or there is no room
        return packed, error, (Part("residual", packed.rank),)
    # equal signs in two layers would make their noise alike
    content = f"{seed}".encode() + packed.sigma.cpu().numpy().tobytes()
    own = int.from_bytes(hashlib.sha256(content).digest()[:4], "little")
    missing = delta - reconstruct(packed)
    tall = longer_side(tuple(delta.shape)) == "u"
    signs = directions(max(delta.shape), count, own).to(delta.device)
    columns = (missing.T if tall else missing) @ (1.0 - signs.float())
    codes, sigma = rounded(columns)
    stored, regenerated = pack(codes), pack(signs)
    u, v = (regenerated, stored) if tall else (stored, regenerated)
    both = PackedFactors(
        torch.cat([packed.u, u], dim=1), torch.cat([packed.v, v], dim=1),
        torch.cat([packed.sigma, sigma * (SHRINK / count)]),
    )  # fmt: skip
    error = ((delta - reconstruct(both)).norm() / delta.norm()).square().item()
    return both, error, (Part("residual", first), Part("sketch", count, own))


def rounded(columns: Tensor) -> tuple[Tensor, Tensor]:
    """(codes uint8 [rows, k], sigma [k] that keeps each column's norm) of columns [rows, k]."""
    size = columns.abs()
    scale = size.square().mean(0).sqrt() / residual.RMS
    for _ in range(REFINEMENTS):
        large = size > residual.THRESHOLD * scale
        values = 1 + 3 * large.float()
        scale = (size * values).sum(0) / values.square().sum(0)
    return ((columns < 0) * 2 + large).byte(), columns.norm(dim=0) / values.norm(dim=0)


def expected_error(left, count: int, shape: tuple[int, int]):
    """Squared relative error of both halves together, where the first half leaves ``left`` (float or tensor).

    E || S - T ||^2 = ((1 - SHRINK)^2 + SHRINK^2 (n / k - n / N)) || T ||^2 of n the longer side, N Omega's order.
    """
    if not count:
        return left
    size = max(shape)
    return left * ((1 - SHRINK) ** 2 + SHRINK**2 * (size / count - size / order_of(size)))
