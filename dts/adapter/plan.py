"""What each tensor of a fine-tune becomes, before anything is compressed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dts import sums
from dts.adapter.entries import Entry
from dts.adapter.matrix import Matrix
from dts.adapter.sizes import whole_error
from dts.adapter.vectors import EXACT, Rounding
from dts.adapter.whole import is_rounded_copy, refuse_nan, whole_entry
from dts.checkpoint import Pair, Pairing
from dts.codec import Factors
from dts.codec.method import Choice, Method
from dts.shapes import SMALL, is_stack


@dataclass
class Compressible:
    """A tensor that is compressed as one or more matrices.

    kind: of the entry, "factors" | "experts";  base_name: of the base's tensor;
    limits: the largest rank of each matrix that is worth asking for, as the codec was seen to take no more.
    """

    name: str
    base_name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    kind: str
    matrices: list[Matrix]
    added_rows: Tensor | None = None
    limits: list[int | None] = field(default_factory=list)

    @property
    def norm(self) -> float:
        return sum(m.norm**2 for m in self.matrices) ** 0.5

    def entry(self, factors: Sequence[Factors | None]) -> Entry | None:
        """None if nothing is stored of it."""
        if all(f is None for f in factors) and self.added_rows is None:
            return None
        entry = Entry(
            self.name,
            self.base_name,
            self.shape,
            self.kind,
            self.dtype,
            added_rows=self.added_rows,
            norm=self.norm,
            squared_error=whole_error(self.norm, factors),
        )
        return entry.with_matrices(factors)

    def planned(self, ranks: list[int], method: Method) -> Entry | None:
        """Its entry at these ranks, without content."""
        return self.entry([matrix.planned(rank, method) for matrix, rank in zip(self.matrices, ranks)])

    def fraction_ranks(self, rank_fraction: float, method: Method) -> list[int]:
        """int(rank_fraction * min(m, n)), at least 1, of every matrix that changed."""
        ranks = [max(1, int(rank_fraction * min(m.shape))) for m in self.matrices]
        return [min(k, m.most(method)) for k, m in zip(ranks, self.matrices)]

    def saw(self, ranks: list[int], factors: Sequence[Factors | None], method: Method) -> None:
        """Notes where the codec made fewer components of a matrix than these ``ranks`` had asked for."""
        for i, (made, rank, matrix) in enumerate(zip(factors, ranks, self.matrices)):
            own = matrix.method(method)
            if made is not None and made.rank < own.components(rank, matrix.compact_shape):
                self.limits[i] = own.limit(rank, made.rank)


def plan_job(
    pairing: Pairing, pair: Pair, method: Choice, spectrum: bool, device=None, rounding: Rounding = EXACT
) -> tuple[int, Callable[[], Entry | Compressible | None]]:
    """(elements to work on, work), as `dts.adapter.in_order` takes it; what is read is read here.

    The work gives an entry if the tensor is stored as it is, a `Compressible` if as factors, None if it is the base's.
    spectrum: with the singular values;  rounding: as in `whole_entry`.
    """
    if pair.base_name is None or not is_compressed(pairing, pair, pair.base_name, method):
        entry = whole_entry(pairing, pair, rounding)
        return 0, lambda: entry
    if is_copy(pairing, pair, pair.base_name):
        return 0, lambda: None
    delta = shared_delta(pairing, pair)

    def measure() -> Compressible | None:
        matrices = [Matrix.of(part, pair.name, spectrum, device) for part in matrices_of(pair.name, delta)]
        changed = pair.added_rows or any(m.norm for m in matrices)
        return compressible(pairing, pair, matrices) if changed else None

    return delta.numel(), measure


def is_difference(pairing: Pairing, pair: Pair, method: Choice) -> bool:
    """Is the tensor one whose difference must be measured, rather than stored whole or the base's own?"""
    if pair.base_name is None or not is_compressed(pairing, pair, pair.base_name, method):
        return False
    return not is_copy(pairing, pair, pair.base_name)


def is_compressed(pairing: Pairing, pair: Pair, base_name: str, method: Choice) -> bool:
    """Is the tensor stored as matrices?  ``base_name``: of the base's tensor that it comes from."""
    if pair.tied_to or not pairing.finetuned.dtype(pair.name).is_floating_point:
        return False
    return bool(pair.added_rows) or is_matrix(pair.name, pairing.base.shape(base_name), method)


def is_copy(pairing: Pairing, pair: Pair, base_name: str) -> bool:
    """Is it the base's tensor, perhaps in another dtype?  Such a copy differs by its rounding alone; and where both are
    infinite (masks), they have no difference that is a number."""
    if pair.added_rows:
        return False
    ours, theirs = pairing.finetuned.load(pair.name), pairing.base.load(base_name)
    # a row mostly tells, and no more is read then
    copied = is_rounded_copy(ours[:1], theirs[:1]) and is_rounded_copy(ours, theirs)
    if copied:
        pairing.finetuned.release(pair.name)
        pairing.base.release(base_name)
    return copied


def is_matrix(name: str, shape: tuple[int, ...], method: Choice) -> bool:
    """Is a tensor of this shape compressed as matrices?  Those that are `SMALL` (heads, routers: they matter much)
    only by methods that take them too."""
    if len(shape) < 2:
        return False
    smaller = min(shape[-2:]) if is_stack(name, shape) else min(shape[0], torch.Size(shape[1:]).numel())
    return smaller > (1 if method.small else SMALL)


def matrices_of(name: str, delta: Tensor) -> list[Tensor]:
    """The matrices a delta is compressed as."""
    return list(delta) if is_stack(name, tuple(delta.shape)) else [delta.flatten(1)]


def shared_delta(pairing: Pairing, pair: Pair) -> Tensor:
    """finetuned - base, float32, on the rows both have."""
    if pair.base_name is None:
        raise ValueError(f"{pair.name} has no difference: the base lacks it")
    finetuned, base = pairing.finetuned.load(pair.name), pairing.base.load(pair.base_name)
    delta = sums.difference(finetuned[: base.shape[0]], base)
    pairing.finetuned.release(pair.name)
    pairing.base.release(pair.base_name)
    return delta


def compressible(pairing: Pairing, pair: Pair, matrices: list[Matrix]) -> Compressible:
    """A tensor of these matrices, with its added rows."""
    if pair.base_name is None:
        raise ValueError(f"{pair.name} has no difference: the base lacks it")
    shape, base_rows = pairing.finetuned.shape(pair.name), pairing.base.shape(pair.base_name)[0]
    added = pairing.finetuned.load(pair.name)[base_rows:].contiguous() if pair.added_rows else None
    if added is not None:
        refuse_nan(added, pair.name)
    kind = "experts" if is_stack(pair.name, shape) else "factors"
    dtype = pairing.finetuned.dtype(pair.name)
    return Compressible(pair.name, pair.base_name, shape, dtype, kind, matrices, added, [None] * len(matrices))
