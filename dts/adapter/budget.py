"""Where the bytes go: ranks of all matrices of a model from one budget.

Each matrix has a `Curve`: bytes and error at each rank.  For a budget errors are `levelled`: a matrix counts for its
elements, and for how far they moved only where that is much farther than in the others.  The next block of components
goes to the matrix with the largest error removed per byte; over convex curves that is optimal, so each curve is first
replaced by its lower convex hull (a first block that also pays for indices and headers may be worth less than the
next).
"""

import heapq
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

TRIALS = 12
FLOOR = 0.01  # of the model's mean square
KNEE = 1.7  # times the median of the matrices' mean squares
CLOSE = 64  # bytes of a budget that may stay unused
BLOCK = 4  # ranks that share a byte of a packed factor


class BudgetError(ValueError):
    """A budget that even the parts that cannot shrink exceed."""


def too_little(nbytes: float, smallest: int) -> BudgetError:
    return BudgetError(
        f"{nbytes:,} bytes are not enough: what cannot shrink (heads, biases, norms, added rows, headers, "
        f"tokenizer files) takes {smallest:,} bytes, the smallest possible size: ask for as many, nbytes={smallest} "
        f"(--budget {smallest}B), or more"
    )


@dataclass
class Curve:
    """Choices for one matrix: int64 ranks (0 first, ascending), bytes at each, and squared error at each (absolute).

    ``errors`` are of the best scale (least squares), not of the codec's, which makes models better although it adds
    Frobenius error, at small ranks more than it removes.
    """

    ranks: np.ndarray
    bytes: np.ndarray
    errors: np.ndarray


def share_of(nbytes: float, shapes: list[tuple[int, int]]) -> float:
    """Bytes, of those that matrices of these shapes have in fp32."""
    return nbytes / max(1, 4 * sum(m * n for m, n in shapes))


def levelled(curves: list[Curve], elements: list[int], counts: list[float] | None = None) -> list[Curve]:
    """The curves with each error over its matrix's mean square, so that it is relative error times elements; a
    matrix that moved much farther than the others counts for more.

    elements: of each matrix, without zero rows and columns;  counts: those that it counts for, its own where they are
    not given (`dts.adapter.matrix.counted`).  With a = mean square / (``KNEE`` times the median of all
    mean squares), a whole matrix counts for its elements times max(1, a)^(3/2).  A patch projection that moved a
    little is needed as much as an MLP that moved more; in tasks of many classes a pooler moves nearly three times as
    far as the rest, and counting that helps.  *Measured* (benchmarks/quality/FINDINGS.md): plain squared errors are
    two to three times worse on images, relative ones alone a quarter worse on text of many classes.  Mean squares
    below ``FLOOR`` of the model's count as ``FLOOR``, so that a tensor which holds only rounding noise gets nothing.
    """
    squares = np.array([curve.errors[0] for curve in curves])
    floor = FLOOR * squares.sum() / max(1, sum(elements))
    means = np.maximum(squares / np.maximum(1, elements), floor)
    if not means.any():
        return curves
    knee = KNEE * np.median(means[squares > 0])
    shares = [1.0] * len(curves) if counts is None else [c / max(1, e) for c, e in zip(counts, elements)]
    return [
        replace(curve, errors=curve.errors * (share * max(1.0, mean / knee) ** 1.5 / mean))
        for curve, mean, share in zip(curves, means, shares)
    ]


def hull(curve: Curve) -> list[int]:
    """Indices of the choices on the lower convex hull of (bytes, error), from no bytes to the least error."""
    nbytes, errors = curve.bytes.tolist(), curve.errors.tolist()  # of which Python takes one faster than of an array

    def slope(start: int, stop: int) -> float:
        return (errors[start] - errors[stop]) / max(1, nbytes[stop] - nbytes[start])

    points = [0]
    slopes: list[float] = []  # from each of the points to the next
    for i in range(1, len(errors)):
        if errors[i] >= errors[points[-1]]:
            continue
        while slopes and slope(points[-2], i) >= slopes[-1]:
            points.pop()
            slopes.pop()
        slopes.append(slope(points[-1], i))
        points.append(i)
    return points


def _slope(curve: Curve, start: int, stop: int) -> float:
    """Error removed per byte."""
    return (curve.errors[start] - curve.errors[stop]) / max(1, curve.bytes[stop] - curve.bytes[start])


Step = tuple[float, int, int, int, float]  # minus error a byte, curve, choice, bytes and error there


def steps_of(curves: list[Curve]) -> list[Step]:
    """The steps of all hulls, the best first."""
    steps: list[Step] = []
    for c, curve in enumerate(curves):
        nbytes, errors, points = curve.bytes.tolist(), curve.errors.tolist(), hull(curve)
        for start, stop in zip(points, points[1:]):
            slope = (errors[start] - errors[stop]) / max(1, nbytes[stop] - nbytes[start])
            steps.append((-slope, c, stop, nbytes[stop], errors[stop]))
    return sorted(steps)


def allocate(
    curves: list[Curve], capacity: float = np.inf, target: float = 0.0, steps: list[Step] | None = None
) -> list[int]:
    """Ranks, one a curve, whose bytes are at most ``capacity`` and, as soon as it is reached, whose errors sum to
    ``target`` or less.  steps: `steps_of` the curves, where they are at hand."""
    chosen = [0] * len(curves)  # index into the curve
    taken, here = [int(c.bytes[0]) for c in curves], [float(c.errors[0]) for c in curves]  # at what is chosen
    left, error = capacity, sum(here)
    full = set()
    for _, c, stop, nbytes, after in steps_of(curves) if steps is None else steps:
        if error <= target:
            break
        cost = nbytes - taken[c]
        if c in full or cost > left:
            full.add(c)
            continue
        left -= cost
        error -= here[c] - after
        chosen[c], taken[c], here[c] = stop, nbytes, after
    if np.isfinite(capacity):
        _fill(curves, chosen, left)
    return [int(curve.ranks[i]) for curve, i in zip(curves, chosen)]


def _fill(curves: list[Curve], chosen: list[int], left: float) -> None:
    """Spends what the hulls' steps left, block by block."""

    def push(c: int) -> None:
        if chosen[c] + 1 < len(curves[c].ranks):
            heapq.heappush(heap, (-_slope(curves[c], chosen[c], chosen[c] + 1), c))

    heap: list[tuple[float, int]] = []
    for c in range(len(curves)):
        push(c)
    while heap:
        slope, c = heapq.heappop(heap)
        cost = curves[c].bytes[chosen[c] + 1] - curves[c].bytes[chosen[c]]
        if slope < 0 and cost <= left:
            left -= cost
            chosen[c] += 1
            push(c)


def allocate_exactly(curves: list[Curve], nbytes: float, total: Callable[[list[int]], int]) -> list[int]:
    """Ranks for which ``total(ranks)``, the exact bytes of the whole adapter, is as much of ``nbytes`` as fits.

    Raises BudgetError naming the smallest possible size if even no component at all is too much.
    """
    smallest = total([0] * len(curves))
    if smallest > nbytes:
        raise too_little(nbytes, smallest)
    best, best_size = [0] * len(curves), smallest
    low: float
    high: float
    low, high = 0, sum(int(curve.bytes.max()) for curve in curves)
    capacity, last, steps = min(nbytes - smallest, high), None, steps_of(curves)
    for _ in range(TRIALS):  # curves know the bytes of headers only nearly
        ranks = allocate(curves, capacity, steps=steps)
        size = total(ranks)
        if size > nbytes:
            # what these ranks left of the capacity must go too, or the next step changes none of them
            capacity = high = min(capacity, sum(_bytes_at(curve, rank) for curve, rank in zip(curves, ranks)))
        else:
            low = capacity
            if size > best_size:
                best, best_size = ranks, size
            if nbytes - size < CLOSE:
                break
        capacity += nbytes - size
        if high - low <= 1:
            break
        if size == last or not low < capacity < high:  # too small a step to change any rank
            capacity = (low + high) // 2
        last = size
    return best


def _bytes_at(curve: Curve, rank: int) -> int:
    return int(curve.bytes[np.searchsorted(curve.ranks, rank)])
