"""At what scale components are stored, and what each prefix of them explains.

**Scale.**  Least squares shrinks a delta, since what rounding leaves is not in it: with s the least squares sigma and
``share`` = ||Delta_hat(s)||^2 / ||Delta||^2 the share of the energy it explains, a sigma of s / share^(1/2) would keep
the norm.  Models come closest to the fine-tune in between: method "residual" stores sigma = s / share^(1/4), the
geometric mean.  *Measured*, this has 2 to 4 times less KL than either end (benchmarks/quality/FINDINGS.md).  Hence

    ||Delta_hat||^2 = share^(1/2) ||Delta||^2,        squared_error = 1 - 2 share^(3/4) + share^(1/2)

**Prefixes.**  The components are in the order taken, so the first k of them are an adapter too.  Write
G = (U^T U) o (V^T V) and b = diag(U^T Delta V); s solves the least squares problem G s = b.  The norm of Delta_hat
follows from G and the stored sigma, so share = (sigma^T G sigma / ||Delta||^2)^2, b = G sigma share^(1/4), and with b
the best sigma of any prefix and its exact error, without Delta.  From the Cholesky factor L of G, the share of the
energy that the best sigma of the first k components explains is sum_{i < k} (L^-1 b)_i^2 / ||Delta||^2: all prefixes
at once.
"""

from typing import TypeVar

import torch
from torch import Tensor

from dts_kernels.layout import PackedFactors
from dts_kernels.reference import factor_values

GAIN = 0.25  # sigma = least squares sigma / share^GAIN: 0 is least squares, 1/2 keeps the norm
RIDGE = 1e-7  # of the mean diagonal: keeps the Gram of nearly equal components solvable

Real = TypeVar("Real", float, Tensor)


def error_of(share: Real) -> Real:
    """Squared relative error of the least squares components / share^GAIN; ``share``: float or float tensor."""
    return 1 - 2 * share ** (1 - GAIN) + share ** (1 - 2 * GAIN)


def code_gram(u: Tensor, v: Tensor) -> Tensor:
    """(U^T U) o (V^T V) for U [m, k] and V [n, k]: the inner products of the components u_i v_i^T."""
    return (u.T @ u).double() * (v.T @ v).double()


def least_squares(gram: Tensor, moments: Tensor) -> tuple[Tensor, Tensor]:
    """Best sigma for fixed codes.

    gram: float64 [k, k]; moments: float64 [k], diag(U^T Delta V).  Returns sigma float64 [k], and float64 [k]
    whose entry i is the energy ||Delta||^2 - ||Delta - Delta_hat||^2 that components 0..i explain at their best.
    """
    ridge = RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    lower = torch.linalg.cholesky(gram + ridge)
    half = torch.linalg.solve_triangular(lower, moments[:, None], upper=False)
    sigma = torch.linalg.solve_triangular(lower.T, half, upper=True)
    return sigma[:, 0], half[:, 0].square().cumsum(0)


def refitted(packed: PackedFactors, rank: int, norm: float) -> tuple[PackedFactors, float]:
    """The first ``rank`` components (at least 1) with the best sigma, scaled as above, and the squared relative error.

    packed: all components of a delta of this ``norm``, without levels.
    """
    gram, moments = _normal_equations(packed, norm)
    sigma, explained = least_squares(gram[:rank, :rank], moments[:rank])
    share = min(1.0, explained[-1].item() / norm**2)
    sigma *= share**-GAIN if share > 0 else 0.0
    first = packed.prefix(rank)
    return PackedFactors(first.u, first.v, sigma.float(), first.levels), error_of(share)


def prefix_shares(packed: PackedFactors, norm: float) -> Tensor:
    """Share of the energy that the least squares sigma of every prefix explains: float64 [rank + 1], entry k of rank k.

    All of them cost one product of the codes and one Cholesky factorisation.
    """
    nothing = torch.zeros(1, dtype=torch.float64)
    if not packed.rank:
        return nothing
    _, explained = least_squares(*_normal_equations(packed, norm))
    return torch.cat([nothing, (explained / norm**2).clamp(max=1)])


def _normal_equations(packed: PackedFactors, norm: float) -> tuple[Tensor, Tensor]:
    """(G float64 [rank, rank], b float64 [rank]) of the module's docstring."""
    gram = code_gram(*factor_values(packed)).double()
    moments = gram @ packed.sigma.double()
    share = ((packed.sigma.double() @ moments) / norm**2) ** (1 / (1 - 2 * GAIN))
    return gram, moments * share**GAIN
