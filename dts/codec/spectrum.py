"""Errors predicted from singular values, before anything is compressed.

Let x be standard normal and x^ its four-level rounding scaled to E x^2 = 1; rho = E[x x^] is how much of a
unit vector its rounding keeps.  Elements of singular vectors of a trained delta are close to normal.

**paper.**  The levels are the RMS of the larger and the smaller half, so the norm is kept and, with the median
q = 0.6745 of |x|, rho = (M_L L + M_S S) / 2 = 0.9275 (M: means, L, S: RMS of the halves).  Different components
round independently, so a component of energy e = s^2 errs by e (2 - 2 rho^2), and with the head share
h = sum_{i<=k} s_i^2 / ||Delta||^2

    error(k) = 1 - h + h (2 - 2 rho^2) = 1 - h (2 rho^2 - 1)                      2 rho^2 - 1 = 0.7204

**residual.**  Rounding u v^T with rho leaves two components of energy e rho^2 (1 - rho^2), the error of u beside
v^ and the error of v beside u^, and one of energy e (1 - rho^2)^2; later components take them up, and each leaves
three again.  So the energies on offer are s_i^2 and all their descendants, the k largest are taken, and each gives
rho^4 of itself:

    share(k) = rho^4 sum of the k largest / ||Delta||^2,        error(k) = 1 - 2 share(k)^(3/4) + share(k)^(1/2)

The codec rounds all components together, which makes it a vector quantiser of 2 bits an element.  The best one of a
normal source has rho^2 = 1 - 2^-4 = 0.9375 (Shannon's rate-distortion function), and that is the prediction.
Rounding element by element to +-1 and +-4 times the best scale has rho^2 = 0.8795: the upper bound for vectors
that are close to normal (spiky ones, with a few large elements, err more).  The lower bound is rho = 1 without
descendants: the truncated SVD's at the same scale (Eckart and Young).
"""

import torch
from torch import Tensor

from .factors import error_of
from .svd import gram

PAPER_KEPT = 0.7204  # 2 rho^2 - 1, rho = 0.9275
SHANNON_KEPT = 1 - 2**-4  # rho^2 of the best quantiser of 2 bits
SCALAR_KEPT = 0.8795  # rho^2 of values 1 and 4, threshold 2.5, best scale
GENERATIONS = 4


def singular_values(delta: Tensor) -> Tensor:
    """All singular values, descending: delta [m, n] -> float64 [min(m, n)]; values below 1e-8 of the largest are noise.

    Needs 3 min(m, n)^2 float64 numbers beyond delta.
    """
    x = delta.float()
    x = x.T if x.shape[0] < x.shape[1] else x
    return torch.linalg.eigvalsh(gram(x)).flip(0).clamp(min=0).sqrt()


def predicted_error(singular_values: Tensor, ranks, method: str = "residual") -> Tensor:
    """Predicted squared relative error at each rank, by the formulas above.

    singular_values: [count], all of them, in any order; ranks: ints.  Returns float64 [len(ranks)].
    """
    energies = sorted_energies(singular_values)
    if method == "paper":
        return 1 - PAPER_KEPT * head_share(energies, ranks)
    return error_of(residual_share(energies, ranks, SHANNON_KEPT))


def error_bounds(singular_values: Tensor, ranks) -> tuple[Tensor, Tensor]:
    """(lower, upper) of method "residual"'s squared relative error at each rank, as `predicted_error`."""
    energies = sorted_energies(singular_values)
    least, most = residual_share(energies, ranks, SCALAR_KEPT), head_share(energies, ranks).clamp(max=1)
    return error_of(most), error_of(least)


def sorted_energies(singular_values: Tensor) -> Tensor:
    """Shares of the energy, float64, descending; a zero matrix has one component of share 1."""
    energies = singular_values.double().square().sort(descending=True).values
    total = energies.sum()
    return energies / total if total > 0 else energies.new_ones(1)


def head_share(energies: Tensor, ranks) -> Tensor:
    """Sum of the first k of descending ``energies`` for each k of ``ranks``."""
    sums = torch.cat([energies.new_zeros(1), energies.cumsum(0)])
    return sums[torch.as_tensor(ranks, device=energies.device).flatten().clamp(0, len(energies))]


def residual_share(energies: Tensor, ranks, kept: float) -> Tensor:
    """share(k) above, with rho^2 = ``kept``."""
    generations = [energies]
    for _ in range(GENERATIONS - 1):
        parents = generations[-1]
        generations.append(torch.cat([parents * (kept * (1 - kept))] * 2 + [parents * (1 - kept) ** 2]))
    return (kept**2 * head_share(torch.cat(generations).sort(descending=True).values, ranks)).clamp(max=1)
