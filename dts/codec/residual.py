"""The default codec: sum_k sigma_k u_k v_k^T with every element of u_k and v_k in {+1, +4, -1, -4}.

On a CPU matrix by matrix (`dts.codec.alternations`), on any other device many of one shape at once (`dts.codec.many`).
"""

import math
from typing import Any

import numpy as np
from torch import Tensor

from dts_kernels.layout import PackedFactors

from . import alternations, many, spectrum
from .method import Method, Parts
from .parts import components

TRIALS = 6  # ranks tried for a target error
TINY = 1e-300  # stands for an error of 0 where logarithms are taken


def encode(delta: Tensor, rank: int, seed: int = 0) -> tuple[PackedFactors, float]:
    """At most ``rank`` components of delta, largest first, and the squared relative error: `alternations.encode`."""
    if many.suits(delta.device):
        return many.encode(delta[None], [rank], seed)[0]
    return alternations.encode(delta, rank, seed)


def encode_to_error(delta: Tensor, target: float, limit: int, seed: int) -> tuple[PackedFactors, float]:
    """Components with the smallest rank found whose error is at most ``target``, and that error.

    The first rank tried is the predicted one; until one rank misses the target and another meets it, the prediction
    is scaled by measured over predicted; then the logarithm of the error is interpolated between the two.
    """
    shape = delta.shape[0], delta.shape[1]
    predicted = spectrum.residual_error(spectrum.singular_values(delta), range(limit + 1), shape)
    best, low, high, ratio = None, 0, limit + 1, 1.0
    errors: dict[int, float] = {}
    for _ in range(TRIALS):
        if low in errors and high in errors:
            fall = math.log(errors[low] / target) / math.log(errors[low] / errors[high])
            guess = math.ceil(low + fall * (high - low))
        else:
            guess = int((predicted * ratio > target).sum())
        rank = min(max(guess, low + 1), high - 1)
        if rank <= low:
            break
        packed, error = encode(delta, rank, seed)
        errors[rank], ratio = max(error, TINY), error / predicted[rank].item()
        if error <= target:
            best, high = (packed, error), rank
        else:
            low = rank
    return best or encode(delta, limit, seed)


class Residual(Method):
    """Components alone; those beyond the delta's rank correct the rounding of the others."""

    name, rank_limit, searches = "residual", 4, True
    about = "components alone: the least squared error, and the most for a router to know a task by"

    def encode(self, delta: Tensor, rank: int, seed: int = 0) -> tuple[Parts, float]:
        packed, error = encode(delta, rank, seed)
        return (packed,), error

    def encode_many(self, deltas: Tensor, ranks: list[int], seed: int = 0) -> list[tuple[Parts, float]]:
        if not many.suits(deltas.device):
            return super().encode_many(deltas, ranks, seed)
        return [((packed,), error) for packed, error in many.encode(deltas, ranks, seed)]

    def encode_to_error(self, delta: Tensor, target: float, limit: int, seed: int = 0) -> tuple[Parts, float]:
        packed, error = encode_to_error(delta, target, limit, seed)
        return (packed,), error

    def planned(self, rank: int, shape: tuple[int, int]) -> Parts:
        return (components.planned(rank, shape),)

    def left(self, singular: Tensor, ranks: np.ndarray, shape: tuple[int, int]) -> Tensor:
        return 1 - spectrum.predicted_share(singular, ranks, shape)

    def error_left(self, error: float) -> float:
        return 1 - error / 16  # what the scale adds, where errors are small

    def predicted_error(self, singular: Tensor, ranks: Any, shape: tuple[int, int] | None) -> Tensor:
        return spectrum.residual_error(singular, ranks, shape)

    def error_bounds(self, singular: Tensor, ranks: Any, shape: tuple[int, int] | None) -> tuple[Tensor, Tensor]:
        return spectrum.residual_bounds(singular, ranks)


METHOD = Residual()
