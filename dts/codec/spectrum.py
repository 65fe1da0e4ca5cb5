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
normal source with b bits a number has rho^2 = 1 - 2^(-2 b) (Shannon's rate-distortion function).  If j of the k
components are singular vectors of Delta and not corrections, they have j (m + n - j) degrees of freedom, since they
are orthogonal, and are written in elements enough for j (m + n); what an element need not tell helps the others.  So

    b = 2 (1 - 0.8 / (k + 2)) ((m + n) / (m + n - j))^(3/4),          rho^2 = 1 - 2^(-2 b)

*Measured*, as are both constants: the fewer components, the less there is to round together (0.8, 2), and not all
of the redundancy is used (3/4; 1 would be all).  Over the 37 matrices of MiniLM fine-tuned on TREC, SST-2 and Snips,
predicted over measured is 0.98 to 1.06 in the mean at r = .02, .05, .15 and .4, and differs from 1 by 2.6 % on
average; with b = 2 it was 0.96 at r = .02 and 1.23 at r = .4.  No component
keeps less than rounding its elements one by one does.  Without the matrix's shape the last factor is 1.

**Bounds.**  Upper: rounding element by element to +-1 and +-4 times the best scale keeps rho^2 = 0.8795 of a vector
of normal elements, and the codec, which goes on from there, keeps more.  Lower: rho = 1, the truncated SVD's at the
same scale, which no matrix of rank k goes below (Eckart and Young); for k <= min(m, n) it assumes nothing, beyond it
is 0.  The paper's lower bound is likewise 1 - h, of any rounding that keeps the norm; its upper bound is that of
elements as heavy-tailed as Laplace's, with rho = 0.8603 and error 1 - 0.4803 h.

**Where they fail.**  Predictions and upper bounds are of vectors whose elements are close to normal.  Kurtosis of the
elements of kept vectors, measured on fine-tunes of MiniLM: 2.8 to 3.5 in the mean of a matrix (normal: 3).  Vectors
with most of their energy in a few elements (a matrix with few large entries) err more than the upper bound at small
ranks.  Where most components correct others (a rank beyond min(m, n), or beyond several times that of a matrix of
low rank), the prediction is too low, several times at worst, while the error is a few per cent at most.
"""

import torch
from torch import Tensor

from .codes import KEPT
from .scale import GAIN, error_of
from .svd import EXACT_BELOW, gram

PAPER_KEPT = 0.7204  # 2 rho^2 - 1, rho = 0.9275
PAPER_KEPT_LAPLACE = 0.4803  # the same of elements with a Laplace distribution
SHANNON_KEPT = 1 - 2**-4  # rho^2 of the best quantiser of 2 bits
LONELY, COMPANY, REDUNDANCY = 0.8, 2, 0.75  # the constants of b
GENERATIONS = 4
TURN = ((1 - 2 * GAIN) / (2 - 2 * GAIN)) ** (1 / GAIN)  # share where `error_of` is largest
FEW = 4  # the largest one in so many are found faster by themselves than by a sort
KNOTS = 12  # values of b between which shares are interpolated


def singular_values(delta: Tensor) -> Tensor:
    """All singular values, descending: delta [m, n] -> float64 [min(m, n)]; values below 1e-8 of the largest are noise,
    below 1e-3 where the short side is beyond EXACT_BELOW: there the Gram matrix is of float32 products.

    Needs 3 min(m, n)^2 float64 numbers beyond delta.
    """
    x = delta.float()
    x = x.T if x.shape[0] < x.shape[1] else x
    fast = x.shape[1] > EXACT_BELOW
    return torch.linalg.eigvalsh(gram(x, fast)).flip(0).clamp(min=0).sqrt()


def residual_error(singular_values: Tensor, ranks, shape: tuple[int, int] | None = None) -> Tensor:
    """Predicted squared relative error of method "residual" at each rank: float64 [len(ranks)].

    singular_values: [count], all of them, in any order; ranks: ints; shape: (m, n) of the matrix without its zero
    rows and columns, where it is known.
    """
    return error_of(predicted_share(singular_values, ranks, shape))


def paper_error(singular_values: Tensor, ranks) -> Tensor:
    """The same of method "paper"."""
    return 1 - PAPER_KEPT * head_share(sorted_energies(singular_values), ranks)


def predicted_share(singular_values: Tensor, ranks, shape: tuple[int, int] | None = None) -> Tensor:
    """Share of the energy that method "residual" at its least squares scale explains; as `residual_error`."""
    energies, ranks = sorted_energies(singular_values), torch.as_tensor(ranks).flatten()
    bits = bits_at(energies, ranks, shape)
    low, high = bits.min().item(), bits.max().item()
    if low == high:
        return residual_share(energies, ranks, kept_by(low))
    # shares are smooth in b, and each value of it costs a sort of all energies
    knots = torch.linspace(low, high, KNOTS, dtype=torch.float64)
    shares = torch.stack([residual_share(energies, ranks, kept_by(knot)) for knot in knots.tolist()])
    at = (bits - low) / (high - low) * (KNOTS - 1)
    left, each = at.long().clamp(max=KNOTS - 2), torch.arange(len(ranks))
    return torch.lerp(shares[left, each], shares[left + 1, each], (at - left).to(shares.device))


def kept_by(bits: float) -> float:
    """rho^2 of ``bits`` a number."""
    return max(KEPT, 1 - 2 ** (-2 * bits))


def bits_at(energies: Tensor, ranks: Tensor, shape: tuple[int, int] | None = None) -> Tensor:
    """b above for each rank: float64 [len(ranks)]."""
    bits = 2 * (1 - LONELY / (ranks.double() + COMPANY))
    if shape is not None:
        energies = within(energies, ranks)
        candidates, order = offers(energies, SHANNON_KEPT).sort(descending=True, stable=True)
        taken = ((order < len(energies)) & (candidates > 0)).cumsum(0).cpu()
        own = torch.cat([taken.new_zeros(1), taken])[ranks.clamp(0, len(taken))]
        bits *= (sum(shape) / (sum(shape) - own.double())) ** REDUNDANCY
    return bits


def residual_bounds(singular_values: Tensor, ranks) -> tuple[Tensor, Tensor]:
    """(lower, upper) bounds of method "residual"'s squared relative error at each rank: float64 [len(ranks)] each.

    The lower one holds for every matrix, the upper one for singular vectors whose elements are close to normal; see
    **Bounds** and **Where they fail** above.  Arguments as in `residual_error`.
    """
    energies = sorted_energies(singular_values)
    most, least = head_share(energies, ranks).clamp(max=1), residual_share(energies, ranks, KEPT)
    # below a share of TURN, the codec's scale adds more error than the components remove
    return error_of(most).clamp(max=1), error_of(least.clamp(min=TURN))


def paper_bounds(singular_values: Tensor, ranks) -> tuple[Tensor, Tensor]:
    """The same of method "paper"."""
    most = head_share(sorted_energies(singular_values), ranks).clamp(max=1)
    return 1 - most, 1 - PAPER_KEPT_LAPLACE * most


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
    on_offer, most = offers(within(energies, ranks), kept), most_of(ranks)
    few = most < len(on_offer) // FEW
    largest = on_offer.topk(most).values if few else on_offer.sort(descending=True).values
    return (kept**2 * head_share(largest, ranks)).clamp(max=1)


def within(energies: Tensor, ranks) -> Tensor:
    """Of descending ``energies`` those that matter to the largest of ``ranks``, and at least one: as many on offer are
    as large as anything that descends from another."""
    return energies[: most_of(ranks)]


def most_of(ranks) -> int:
    """The largest of the ranks, at least 1."""
    return max(1, int(torch.as_tensor(ranks).max()))


def offers(energies: Tensor, kept: float) -> Tensor:
    """The energies of all components on offer: ``energies`` first, then their descendants."""
    generations = [energies]
    for _ in range(GENERATIONS - 1):
        parents = generations[-1]
        generations.append(torch.cat([parents * (kept * (1 - kept))] * 2 + [parents * (1 - kept) ** 2]))
    return torch.cat(generations)
