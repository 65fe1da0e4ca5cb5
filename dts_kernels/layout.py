"""The only place that knows where a code's bits are: codes <-> disk bytes.

A *code* is 2 bits: bit 1 = negative, bit 0 = large.  Without levels the four codes mean

    code      0    1    2    3
    value    +1   +4   -1   -4          (``VALUES``; the scale lives in sigma)

and with ``levels`` (method "paper") ``levels[0, code]`` for U and ``levels[1, code]`` for V.

Disk bytes: the rank axis is packed, four ranks a byte, rank 4j+i in bits 2i and 2i+1 of byte j:

    bit     7 6   5 4   3 2   1 0
    rank   4j+3  4j+2  4j+1  4j+0         pad ranks of the last byte are code 0

Both factors are packed along the rank axis, so a slice of rows (a tensor-parallel shard, one of a
fused q/k/v) and a prefix of the ranks are plain slices of the bytes.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

VALUES = (1.0, 4.0, -1.0, -4.0)
VALUES_RMS = 2.5  # of a factor whose codes are rounded from a normal distribution, near enough for ranges


def packed_width(rank: int) -> int:
    """Bytes of one row of a factor of ``rank`` components."""
    return (rank + 3) // 4


def pack(codes: Tensor) -> Tensor:
    """Codes to disk bytes.

    codes: uint8 [rows, rank], each 0..3.  Returns uint8 [rows, ceil(rank / 4)].
    """
    if codes.dtype != torch.uint8 or codes.dim() != 2:
        raise TypeError(f"codes must be uint8 [rows, rank], not {codes.dtype} {list(codes.shape)}")
    rows, rank = codes.shape
    width = packed_width(rank)
    padded = torch.nn.functional.pad(codes, (0, 4 * width - rank)).view(rows, width, 4)
    return padded[..., 0] | padded[..., 1] << 2 | padded[..., 2] << 4 | padded[..., 3] << 6


def unpack(packed: Tensor, rank: int) -> Tensor:
    """Disk bytes to codes, the inverse of `pack`.

    packed: uint8 [rows, ceil(rank / 4)].  Returns uint8 [rows, rank].
    """
    if packed.dtype != torch.uint8 or packed.dim() != 2 or packed.shape[1] != packed_width(rank):
        raise TypeError(
            f"packed must be uint8 [rows, {packed_width(rank)}] for rank {rank}, "
            f"not {packed.dtype} {list(packed.shape)}"
        )
    codes = torch.stack([packed >> shift & 3 for shift in (0, 2, 4, 6)], dim=-1)
    return codes.flatten(1)[:, :rank]


@dataclass(frozen=True)
class PackedFactors:
    """One low-rank product  sum_k sigma_k u_k v_k^T  of shape [m, n], in disk bytes.

    u: uint8 [m, ceil(k/4)];  v: uint8 [n, ceil(k/4)];  sigma: float32 [k];
    levels: float32 [2, 4] (values of codes 0..3 for U and V) or None for ``VALUES`` on both sides.
    """

    u: Tensor
    v: Tensor
    sigma: Tensor
    levels: Tensor | None = None

    def __post_init__(self):
        rank = self.sigma.shape[0] if self.sigma.dim() == 1 else -1
        wrong = []
        if self.sigma.dtype != torch.float32 or rank < 0:
            wrong.append(f"sigma must be float32 [rank], not {self.sigma.dtype} {list(self.sigma.shape)}")
        for name, factor in (("u", self.u), ("v", self.v)):
            if factor.dtype != torch.uint8 or factor.dim() != 2 or rank >= 0 and factor.shape[1] != packed_width(rank):
                wrong.append(
                    f"{name} must be uint8 [rows, {packed_width(max(rank, 0))}], not {factor.dtype} {list(factor.shape)}"
                )
        if self.levels is not None and (self.levels.dtype != torch.float32 or tuple(self.levels.shape) != (2, 4)):
            wrong.append(f"levels must be float32 [2, 4], not {self.levels.dtype} {list(self.levels.shape)}")
        if wrong:
            raise ValueError("factors do not fit together: " + "; ".join(wrong))

    @property
    def rank(self) -> int:
        return self.sigma.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        """(m, n) = (out_features, in_features) of the product."""
        return self.u.shape[0], self.v.shape[0]

    @property
    def nbytes(self) -> int:
        """Bytes of all its tensors, without any file header."""
        return sum(t.numel() * t.element_size() for t in (self.u, self.v, self.sigma, self.levels) if t is not None)

    def transpose(self) -> "PackedFactors":
        """Factors of the transposed product [n, m] (layers that store their weight as [in, out])."""
        return PackedFactors(self.v, self.u, self.sigma, None if self.levels is None else self.levels.flip(0))

    def prefix(self, rank: int) -> "PackedFactors":
        """The first ``rank`` components; sigma as stored, not rescaled."""
        rank, width = min(rank, self.rank), packed_width(min(rank, self.rank))
        return PackedFactors(self.u[:, :width], self.v[:, :width], self.sigma[:rank], self.levels)

    def rows(self, start: int, stop: int) -> "PackedFactors":
        """Factors of rows start..stop of the product (a fused projection's part, a shard)."""
        return PackedFactors(self.u[start:stop], self.v, self.sigma, self.levels)

    def to(self, device) -> "PackedFactors":
        move = lambda t: None if t is None else t.to(device)  # noqa: E731
        return PackedFactors(move(self.u), move(self.v), move(self.sigma), move(self.levels))
