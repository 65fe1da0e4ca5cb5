"""Factors of a mixture: sum_i gamma_i Delta_i of factors side by side, each kind of part by its own rule."""

import torch

from dts.codec import Factors, compress_tensor
from dts.codec.disk import of_kind
from dts.codec.parts import KINDS, kind_of

Members = list[tuple[float, Factors]]  # (gamma, factors)


def concatenated(members: Members) -> Factors:
    """The exact mixture of factors of equal shape; components in order of their size.

    ``norm`` is the mixture's own (of the components, not the samples; without components as of members that have
    nothing in common) and ``squared_error`` 0, so that its prefixes are refitted to the mixture.
    Raises ValueError where they do not fit `side_by_side`.
    """
    mixture = side_by_side(members)
    if mixture is None:
        raise ValueError("these factors do not fit side by side: other zero rows or columns, levels, or parts")
    return mixture


def mixed_factors(members: Members, name: str | None = None) -> tuple[Factors | None, bool]:
    """(factors of the mixture, whether they are exact); where they cannot be, encoded anew at the sum of the ranks,
    of components alone: the noise of samples would be all there is to encode.  None where that leaves nothing."""
    mixture = side_by_side(members)
    if mixture is not None:
        return mixture, True
    members = [(gamma, f.low_rank()) for gamma, f in members if f.rank]
    if not members:
        return None, False
    dense = sum((gamma * f.reconstruct() for gamma, f in members), torch.zeros(()))
    return compress_tensor(dense, rank=sum(f.rank for _, f in members), name=name), False


def side_by_side(members: Members) -> Factors | None:
    """The exact mixture, if the factors cover the same rows and columns in parts that can be added up.

    The code has no zero: a row one member does not have cannot be written for it.
    """
    first = members[0][1]
    if not all(
        f.shape == first.shape and _same(f.rows, first.rows) and _same(f.columns, first.columns) for _, f in members
    ):
        return None
    stored = []
    for kind in KINDS.values():
        own = [(gamma, data) for gamma, f in members for data in of_kind(f, kind)]
        sums = kind.weighted(own) if own else []
        if sums is None:
            return None
        stored += sums
    ranked = [data for data in stored if kind_of(data).ranked]
    norm = sum(kind_of(data).energy(data) for data in ranked) ** 0.5
    if not any(kind_of(data).rank(data) for data in ranked):
        norm = sum((gamma * f.norm) ** 2 for gamma, f in members) ** 0.5
    return Factors(tuple(stored), first.shape, first.rows, first.columns, norm, 0.0)


def _same(a, b) -> bool:
    return a is b or a is not None and b is not None and torch.equal(a, b)
