"""Components of many matrices: `dts.codec.alternations.encode` with a leading dimension.

Ranks may differ: all have room for the largest, and a mask says which components there are.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from dts_kernels.layout import PackedFactors, pack, packed_width

from .. import alternations
from ..codes import RMS, THRESHOLD
from ..scale import GAIN, RIDGE, error_of
from .basis import leading, significant
from .host import exact_products, to_host
from .sweeps import sweep


@dataclass
class Encoded:
    """Components of B matrices [m, n], on their device; beyond each one's rank all are 0.

    u: float32 [B, k, m], values of codes; v: [B, k, n]; sigma: [B, k]; ranks: of each; energy, errors: float64 [B],
    ||delta||^2 and the squared relative error.
    """

    u: Tensor
    v: Tensor
    sigma: Tensor
    ranks: list[int]
    energy: Tensor
    errors: Tensor

    def packed(self) -> list[Tensor]:
        """[u uint8 [B, m, bytes], v uint8 [B, n, bytes], sigma, errors], which `factors` takes from the host."""
        return [pack_values(self.u), pack_values(self.v), self.sigma, self.errors]

    def factors(self, u: Tensor, v: Tensor, sigma: Tensor, errors: Tensor) -> list[tuple[PackedFactors, float]]:
        """Of each, as `dts.codec.alternations.encode` gives them; arguments: `packed`, on the CPU."""
        made = []
        for i, (rank, error) in enumerate(zip(self.ranks, errors.tolist())):
            own_u, own_v = (x[i, :, : packed_width(rank)].clone() for x in (u, v))
            made.append((PackedFactors(own_u, own_v, sigma[i, :rank].clone()), error))
        return made


def encode(deltas: Tensor, ranks: list[int], seed: int = 0) -> list[tuple[PackedFactors, float]]:
    """(factors on the CPU, squared relative error) of each, as `dts.codec.alternations.encode`.

    deltas: float32 [B, m, n], none of them zero, elements of order 1;  ranks: [B], of each.
    """
    made = encoded(deltas, ranks, seed)
    return made.factors(*to_host(made.packed()))


def encoded(deltas: Tensor, ranks: list[int], seed: int = 0) -> Encoded:
    """The same, on the device.  The number of alternations is that of the largest rank."""
    with exact_products():
        return _encoded(deltas, ranks, seed)


def _encoded(deltas: Tensor, ranks: list[int], seed: int) -> Encoded:
    u, sigma, v, found = start(deltas, ranks, seed)
    counts = torch.tensor(found, dtype=torch.int32).to(deltas.device, non_blocking=True)
    mask = torch.arange(u.shape[1], device=deltas.device) < counts[:, None]
    energy = torch.linalg.vector_norm(deltas, dim=(1, 2), dtype=torch.float64).square()
    first, last = alternations.RELAXATION
    steps = alternations.affordable(deltas.shape[1], deltas.shape[2], max(ranks))
    moving = steps - alternations.SETTLING
    left, v_gram = v @ deltas.mT, v @ v.mT
    for step in range(steps):
        relaxation = first + (last - first) * step / (moving - 1) if step < moving else 1.0
        sweep(u, left, v_gram, sigma, relaxation, mask, counts)
        right, u_gram = u @ deltas, u @ u.mT
        sigma, explained = fit(u, u_gram, v, v_gram, right, mask, counts)
        sweep(v, right, u_gram, sigma, relaxation, mask, counts)
        left, v_gram = v @ deltas.mT, v @ v.mT
        sigma, explained = fit(v, v_gram, u, u_gram, left, mask, counts)
    share = (explained / energy).clamp(max=1)
    sizes = (u_gram.diagonal(dim1=1, dim2=2) * v_gram.diagonal(dim1=1, dim2=2)).sqrt() * sigma
    order = sizes.argsort(dim=1, descending=True, stable=True)
    u, v = (x.gather(1, order[:, :, None].expand_as(x)) for x in (u, v))
    sigma = sigma.gather(1, order) * share[:, None].pow(-GAIN).float()
    return Encoded(u, v, sigma, found, energy, error_of(share))


def start(deltas: Tensor, ranks: list[int], seed: int) -> tuple[Tensor, Tensor, Tensor, list[int]]:
    """Real-valued u [B, k, m], sigma [B, k], v [B, k, n] as `dts.codec.alternations.start`, and the rank of each.

    Those that have fewer singular vectors than the rank asked for go on one by one: their others start from what is
    left.
    """
    m, n = deltas.shape[1:]
    most = min(max(ranks), m, n)
    u, s, vh = leading(deltas, most, seed)
    found = to_host([significant(s, (m, n))])[0].tolist()
    own = [min(rank, count) for rank, count in zip(ranks, found)]
    more = [alternations.start(deltas[i], rank, seed) if rank > own[i] else None for i, rank in enumerate(ranks)]
    own = [rank if one is None else len(one[1]) for rank, one in zip(own, more)]
    size = max(own)
    result = [x.new_zeros(len(own), size, *x.shape[2:]) for x in (u.mT, s, vh)]
    have = min(size, most)
    result[0][:, :have] = u.mT[:, :have] * (RMS * m**0.5)
    result[1][:, :have] = s[:, :have] / (RMS**2 * (m * n) ** 0.5)
    result[2][:, :have] = vh[:, :have] * (RMS * n**0.5)
    for i, rank in enumerate(own):
        for x, one in zip(result, more[i] or ()):
            x[i, :rank] = one
        for x in result:
            x[i, rank:] = 0
    return result[0], result[1], result[2], own


def fit(
    signed: Tensor,
    signed_gram: Tensor,
    other: Tensor,
    other_gram: Tensor,
    moments: Tensor,
    mask: Tensor,
    counts: Tensor,
) -> tuple[Tensor, Tensor]:
    """Least squares sigma [B, k], made positive by turning ``signed``, its Gram matrix and ``moments`` in place, and
    the energy it explains, float64 [B].

    signed: [B, k, m]; other: [B, k, n]; moments: [B, k, n], signed times delta; both Gram matrices [B, k, k];
    mask: bool [B, k], the first ``counts`` of each.
    """
    gram = signed_gram.double() * other_gram
    diagonal = gram.diagonal(dim1=1, dim2=2)
    ridge = RIDGE * diagonal.sum(1) / counts
    diagonal += torch.where(mask, ridge[:, None], 1.0)  # components that there are none of: sigma 0
    lower = torch.linalg.cholesky_ex(gram)[0]
    half = torch.linalg.solve_triangular(lower, (moments.double() * other).sum(2)[:, :, None], upper=False)
    sigma = torch.linalg.solve_triangular(lower.mT, half, upper=True)[:, :, 0]
    sign = torch.where(sigma < 0, -1.0, 1.0).float()
    for x in (signed, moments):
        x *= sign[:, :, None]
    signed_gram *= sign[:, :, None] * sign[:, None, :]
    size = sigma.abs()
    size = torch.maximum(size, 1e-9 * size.amax(1, keepdim=True)) * mask
    return size.float(), half[:, :, 0].square().sum(1)


def pack_values(x: Tensor) -> Tensor:
    """Values of codes [B, k, rows], 0 where there are none, to disk bytes: uint8 [B, rows, ceil(k / 4)]."""
    codes = ((x < 0) * 2 + (x.abs() > THRESHOLD)).byte().mT
    return pack(codes.reshape(-1, x.shape[1])).view(len(x), x.shape[2], -1)
