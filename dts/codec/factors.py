"""One compressed matrix: packed codes, where they sit in the full matrix, and what was lost.

A delta [m, n] often has rows or columns that are exactly zero (embedding rows no token touched).
They are removed before coding, so ``packed`` is of the compact [m', n'] matrix and ``rows`` and
``columns`` say where its rows and columns go.

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

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dts_kernels.layout import PackedFactors
from dts_kernels.reference import factor_values, reconstruct
from dts_kernels.samples import Samples, dense

GAIN = 0.25  # sigma = least squares sigma / share^GAIN: 0 is least squares, 1/2 keeps the norm
RIDGE = 1e-7  # of the mean diagonal: keeps the Gram of nearly equal components solvable


@dataclass(frozen=True)
class Part:
    """A run of ``rank`` components that were made in one way.

    kind: "residual" | "paper"
    """

    kind: str
    rank: int


@dataclass(frozen=True)
class Factors:
    """One compressed matrix [m, n]; see the module's docstring.

    packed: of the compact [m', n'] matrix; all parts side by side along the rank axis
    shape: (m, n); rows, columns: int64 indices of the kept rows and columns, None = all
    parts: what the components are, in order; norm: ||delta||_F of the delta that was compressed
    squared_error: ||delta - delta_hat||_F^2 / ||delta||_F^2 of all of it; None where it is not known
    samples: of the compact matrix, added to the components (`dts.codec.sketch`); one, of a mixture one a member
    """

    packed: PackedFactors
    shape: tuple[int, int]
    rows: Tensor | None
    columns: Tensor | None
    parts: tuple[Part, ...]
    norm: float
    squared_error: float | None
    samples: tuple[Samples, ...] = ()

    @property
    def rank(self) -> int:
        return self.packed.rank

    @property
    def stored(self) -> tuple[PackedFactors | Samples, ...]:
        """What kernels compute with, in order: their sum is the compact matrix."""
        return (self.packed, *self.samples)

    @property
    def method(self) -> str:
        """ "sketch" if there are samples, else "paper" or "residual", the kind of the components."""
        return "sketch" if self.samples else self.parts[-1].kind if self.parts else "residual"

    def residual(self) -> "Factors":
        """Without samples: the components alone."""
        if not self.samples:
            return self
        kept = replace(self, samples=(), squared_error=None)
        return replace(kept, squared_error=kept.prefix_errors()[-1].item())

    @property
    def nbytes(self) -> int:
        """Bytes of its tensors on disk, without file headers."""
        index = sum(
            index_to_disk(kept, size).nbytes
            for kept, size in zip((self.rows, self.columns), self.shape)
            if kept is not None
        )
        return self.packed.nbytes + index + sum(one.nbytes for one in self.samples)

    def reconstruct(self, rank: int | None = None, dtype=torch.float32) -> Tensor:
        """The dense delta [m, n], of the first ``rank`` components if given."""
        if rank is not None and rank < self.rank:
            return self.prefix(rank).reconstruct(dtype=dtype)
        compact = reconstruct(self.packed, dtype)
        for one in self.samples:
            compact += dense(one, dtype)
        if self.rows is None and self.columns is None:
            return compact
        full = compact.new_zeros(self.shape)
        rows = torch.arange(self.shape[0]) if self.rows is None else self.rows
        columns = torch.arange(self.shape[1]) if self.columns is None else self.columns
        full[rows[:, None], columns] = compact
        return full

    def prefix(self, rank: int) -> "Factors":
        """The first ``rank`` components, without samples if those are fewer than there are.

        "residual": sigma is the best of those components, scaled as the module's docstring says, and
        ``squared_error`` is exact.  "paper": sigma as it was, ``squared_error`` None.
        """
        if rank < 0:
            raise ValueError(f"a prefix has a rank of 0 or more, not {rank}")
        if rank >= self.rank:
            return self
        parts, left = [], rank
        for part in self.parts:
            if left:
                parts.append(replace(part, rank=min(part.rank, left)))
                left -= parts[-1].rank
        packed = self.packed.prefix(rank)
        if rank == 0:
            return replace(self, packed=packed, parts=(), squared_error=1.0, samples=())
        if any(part.kind != "residual" for part in self.parts):
            return replace(self, packed=packed, parts=tuple(parts), squared_error=None)
        gram, moments = self._normal_equations()
        sigma, explained = least_squares(gram[:rank, :rank], moments[:rank])
        share = min(1.0, explained[-1].item() / self.norm**2)
        sigma *= share**-GAIN if share > 0 else 0.0
        packed = replace(packed, sigma=sigma.float())
        return replace(self, packed=packed, parts=tuple(parts), squared_error=error_of(share), samples=())

    def prefix_errors(self) -> Tensor:
        """Squared relative error of every prefix: float64 [rank + 1], entry k for rank k.  Only for "residual"."""
        return error_of(self.prefix_shares())

    def prefix_shares(self) -> Tensor:
        """Share of the energy that the least squares sigma of every prefix explains: float64 [rank + 1].

        Only for "residual"; all of them cost one product of the codes and one Cholesky factorisation.
        """
        if any(part.kind != "residual" for part in self.parts):
            raise ValueError(f"only residual factors know the errors of their prefixes, not {self.method!r}")
        nothing = torch.zeros(1, dtype=torch.float64)
        if not self.rank:
            return nothing
        _, explained = least_squares(*self._normal_equations())
        return torch.cat([nothing, (explained / self.norm**2).clamp(max=1)])

    def _normal_equations(self) -> tuple[Tensor, Tensor]:
        """(G float64 [rank, rank], b float64 [rank]) of the module's docstring."""
        gram = code_gram(*factor_values(self.packed)).double()
        moments = gram @ self.packed.sigma.double()
        share = ((self.packed.sigma.double() @ moments) / self.norm**2) ** (1 / (1 - 2 * GAIN))
        return gram, moments * share**GAIN


def error_of(share):
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


def index_to_disk(kept: Tensor, size: int) -> Tensor:
    """Kept indices (int64, ascending, below ``size``) in the smaller of two forms.

    int32 [count], the indices; or uint8 [ceil(size / 8)], a bit an index, index 8j+i in bit i of byte j.
    """
    if 4 * len(kept) < (size + 7) // 8:
        return kept.int()
    mask = torch.zeros((size + 7) // 8 * 8, dtype=torch.uint8)
    mask[kept] = 1
    return (mask.view(-1, 8) << torch.arange(8, dtype=torch.uint8)).sum(1, dtype=torch.uint8)


def index_from_disk(stored: Tensor) -> Tensor:
    """The inverse of `index_to_disk`: int64, ascending."""
    if stored.dtype == torch.uint8:
        return (stored[:, None] >> torch.arange(8, dtype=torch.uint8) & 1).flatten().nonzero()[:, 0]
    return stored.long()
