"""What can be kept of a matrix where an adapter is cut, and what each choice takes and leaves.

Of components it is the first ones.  A sketch is cut as it was made (`dts.codec.sketch.split`): so many components and a
share of its sample that take the bytes of a *rank* of components alone.
"""

from dataclasses import dataclass

import numpy as np
import torch

from dts.adapter.budget import BLOCK, Curve
from dts.adapter.matrix import with_tail
from dts.adapter.sizes import HEADER_BYTES
from dts.codec import Factors, residual, shorter, sketch
from dts.codec.parts import components, sample
from dts.codec.shorter import Kept
from dts_kernels.samples import SHARES

SMALLEST = 1e-6  # singular values, of the largest, that are more than rounding


@dataclass(frozen=True)
class Prefixes:
    """Of one matrix.

    curve: what can be kept, 0 for nothing;  sketched: rank -> what of a sketch;  again: with components made anew.
    """

    factors: Factors
    curve: Curve
    sketched: dict[int, Kept]
    again: bool

    @classmethod
    def of(cls, factors: Factors, again: bool) -> "Prefixes":
        if not shorter.is_sketch(factors):
            return cls(factors, _curve(factors), {}, again)
        sketched, sizes = _sketched(factors)
        ranks = np.array([0, *sketched])
        nbytes = np.append(0, np.array(sizes) + factors.index_nbytes + HEADER_BYTES)
        return cls(factors, Curve(ranks, nbytes, _left(factors, ranks, again) * factors.norm**2), sketched, again)

    def at(self, rank: int) -> Factors | None:
        """What is kept at a rank of the curve."""
        if not rank:
            return None
        if rank in self.sketched:
            return shorter.shortened(self.factors, self.sketched[rank], self.again)
        return self.factors if rank > self.factors.rank else self.factors.low_rank().prefix(rank)

    def planned(self, rank: int) -> Factors | None:
        """The same, where it is made anew without content: right in every shape and byte."""
        if rank in self.sketched:
            return shorter.planned(self.factors, self.sketched[rank], self.again)
        return self.at(rank)


def _sketched(factors: Factors) -> tuple[dict[int, Kept], list[int]]:
    """(rank -> what of a sketch takes no more than so many components would, the bytes of each)."""
    shape, have, whole = factors.compact_shape, factors.packed.rank, factors.samples[0]
    size = factors.nbytes - factors.index_nbytes
    most = max(BLOCK, -(-int(size / (sum(shape) / BLOCK + 4)) // BLOCK) * BLOCK)
    found: dict[int, Kept] = {}
    taken = []
    for rank in range(BLOCK, most, BLOCK):
        kept, nbytes = _split(factors, rank, have)
        if 0 < nbytes < size:
            found[rank] = kept
            taken.append(nbytes)
    return found | {most: (have, whole.share)}, [*taken, size]


def _split(factors: Factors, rank: int, have: int) -> tuple[Kept, int]:
    shape, whole = factors.compact_shape, factors.samples[0]
    at = lambda count: int(components.bytes_at(shape, np.array(count)))  # noqa: E731
    room, first = at(rank), min(sketch.split(rank, shape)[0], have)
    for share in SHARES[SHARES.index(whole.share) :]:
        size = sample.nbytes_at(shape, whole.stride, share)
        if at(first) + size <= room:
            while first < have and at(min(first + BLOCK, have)) + size <= room:
                first = min(first + BLOCK, have)
            return (first, share), at(first) + size
    return (min(rank, have), None), at(min(rank, have))


def _left(factors: Factors, ranks: np.ndarray, again: bool) -> np.ndarray:
    """Relative error of so many components at their best scale, as predicted from what there are.

    Not again: exact up to those, and beyond as predicted, in proportion.
    """
    packed, norm, shape = factors.packed, factors.norm, factors.compact_shape
    shares = factors.runs[0][0].prefix_left(packed, norm)
    have, size = packed.rank, min(shape)
    found = shorter.singular_values(packed, norm)[:size] if have else torch.zeros(0)
    found = found[found > SMALLEST * found[:1]]
    values = with_tail(found, norm, size)
    predicted = residual.METHOD.left(values, np.append(ranks, have), shape)
    if again:
        errors = predicted[:-1]
        errors[0] = 1.0
        return errors.numpy()
    predicted *= (shares[-1] / predicted[-1]) if predicted[-1] > 0 else 1.0
    known = torch.as_tensor(ranks)
    beyond = torch.minimum(predicted[:-1], shares[-1])
    return torch.where(known <= have, shares[known.clamp(max=have)], beyond).numpy()


def _curve(factors: Factors) -> Curve:
    """Bytes and remaining error of every prefix of whole blocks (and of all components).

    Parts that are no components stay or go: with them counts as one rank more, and as if they took as large a share of
    what they found as the components did.
    """
    low_rank = factors.low_rank()
    if low_rank is not factors:
        if not factors.rank and factors.samples and factors.norm > 0:
            return _of_samples(factors)
        curve = _curve(low_rank)
        left = curve.errors[-1] ** 2 / factors.norm**2
        if not low_rank.stored:
            left = (factors.squared_error or 0.0) * factors.norm**2
        return Curve(
            np.append(curve.ranks, factors.rank + 1),
            np.append(curve.bytes, factors.nbytes + HEADER_BYTES),
            np.append(curve.errors, left),
        )
    rank, runs = factors.rank, factors.runs
    if len(runs) != 1:  # how several share what they explain is not known: all of them or none
        ranks = np.unique([0, rank])
        error = 0.0 if factors.squared_error is None else factors.squared_error
        return Curve(
            ranks,
            np.where(ranks > 0, factors.nbytes + HEADER_BYTES, 0),
            np.where(ranks > 0, error, 1.0) * factors.norm**2,
        )
    kind, data = runs[0]
    ranks = np.unique(np.append(np.arange(0, rank, BLOCK), rank))
    errors = kind.prefix_left(data, factors.norm).numpy()[ranks]
    nbytes = kind.prefix_bytes(data, ranks) + np.where(ranks > 0, factors.index_nbytes + HEADER_BYTES, 0)
    return Curve(ranks, nbytes, errors * factors.norm**2)


def _of_samples(factors: Factors) -> Curve:
    """Samples without components, of a mixture: all or nothing, worth what components of as many bytes would be."""
    shape = factors.compact_shape
    values = with_tail(torch.zeros(0), factors.norm, min(shape))
    rank = max(1, int((factors.nbytes - factors.index_nbytes) / (sum(shape) / BLOCK + 4)))
    left = residual.METHOD.left(values, np.array([rank]), shape)[0].item()
    return Curve(
        np.array([0, 1]), np.array([0, factors.nbytes + HEADER_BYTES]), np.array([1.0, left]) * factors.norm**2
    )
