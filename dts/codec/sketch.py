"""Method "sketch": a quarter of the bytes for residual components, the rest for an unbiased sample of what they leave.

What residual components leave out is missing in every layer, and pulls the model's answers the same way in all of
them; noise of equal size does not add up.  So what the components leave is sampled (`dts.codec.parts.sample`).

The noise is several times the delta (``squared_error`` > 1), yet *measured*, the answers of language models and of text
encoders are closer to the fine-tune's than the residual method's at equal bytes (benchmarks/quality/FINDINGS.md).
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dts_kernels.layout import packed_width
from dts_kernels.samples import STRIDES, groups_of

from . import many, residual
from .method import Method, Parts
from .parts import components, sample

SHARE = 4  # the components have one in so many of the bytes
LONE = 40  # the least stride of a sample that takes all bytes of one block: of fewer elements a block explains more
BLOCK = 4  # components that share a byte


def split(rank: int, shape: tuple[int, int]) -> tuple[int, int | None]:
    """(residual components, stride of the sample) that take no more bytes than ``rank`` residual components.

    shape: (m, n) without zero rows and columns.  Stride None where there is no room for a sample.  What would be one
    block of components of a large matrix is a sample alone.
    """
    m, n = shape
    component = sum(shape) / BLOCK + 4  # bytes
    first = 0 if rank <= BLOCK else min(rank, max(1, round(rank / (SHARE * BLOCK))) * BLOCK)
    room = (rank - first) * component
    if room < m:
        return rank, None
    stride = -(-n // (BLOCK * int(room // m)))
    if stride not in STRIDES or not first and stride < LONE:
        return rank, None
    room -= m * packed_width(groups_of(n, stride))  # strides have gaps where they are small
    return first + int(room // (BLOCK * component)) * BLOCK, stride


def encode(delta: Tensor, rank: int, seed: int = 0) -> tuple[Parts, float]:
    """Components and sample, at the bytes of ``rank`` residual components.

    delta: float32 [m, n], not zero, elements of order 1.  Returns them (no sample where nothing is left or there is no
    room) and the squared relative error of both together.
    """
    if many.suits(delta.device):
        return encode_many(delta[None], [rank], seed)[0]
    first, stride = split(rank, (delta.shape[0], delta.shape[1]))
    if stride is not None and not first:
        return lone(delta, stride, seed)
    packed, error = residual.encode(delta, first, seed)
    if packed.rank < first or stride is None:
        return (packed,), error
    rest, error = sample.encode(delta, packed, stride, seed)
    return (packed, rest), error


def lone(delta: Tensor, stride: int, seed: int = 0) -> tuple[Parts, float]:
    """The same of a sample of the delta itself, beside components of rank 0."""
    nothing = components.none((delta.shape[0], delta.shape[1]), delta.device)
    rest, error = sample.encode(delta, nothing, stride, seed)
    return (nothing, rest), error


def encode_many(deltas: Tensor, ranks: list[int], seed: int = 0) -> list[tuple[Parts, float]]:
    """The same of each of several deltas [B, m, n], at once (`dts.codec.many`); samples alone one by one."""
    shape = deltas.shape[1], deltas.shape[2]
    splits = [split(rank, shape) for rank in ranks]
    alone = {i: stride for i, (first, stride) in enumerate(splits) if stride is not None and not first}
    if alone:
        found = {i: lone(deltas[i], stride, seed) for i, stride in alone.items()}
        others = [i for i in range(len(ranks)) if i not in alone]
        if others:
            found |= zip(others, encode_many(deltas[others], [ranks[i] for i in others], seed))
        return [found[i] for i in range(len(ranks))]
    made = many.encoded(deltas, [first for first, _ in splits], seed)
    strides = [stride if have == first else None for have, (first, stride) in zip(made.ranks, splits)]
    sampled = many.encode_samples(deltas, made, strides, seed)
    return [((packed,) if rest is None else (packed, rest), error) for packed, rest, error in sampled]


class Sketch(Method):
    """Residual components and a sample of what they leave."""

    name, rank_limit, to_error = "sketch", residual.METHOD.rank_limit, False
    about = (
        "a quarter of the bytes for components, the rest for a random sample of what they leave: noise, yet closer "
        "answers where the fine-tune is near its base"
    )
    note = ", mostly the sketch's noise"

    def for_tables(self) -> Method:
        """Components alone: what an output layer's rows have in common changes no answer, so that a sample's noise is
        many times what matters of such a table, and nothing that follows evens it out."""
        return residual.METHOD

    def encode(self, delta: Tensor, rank: int, seed: int = 0) -> tuple[Parts, float]:
        return encode(delta, rank, seed)

    def encode_many(self, deltas: Tensor, ranks: list[int], seed: int = 0) -> list[tuple[Parts, float]]:
        return (
            encode_many(deltas, ranks, seed) if many.suits(deltas.device) else super().encode_many(deltas, ranks, seed)
        )

    def planned(self, rank: int, shape: tuple[int, int]) -> Parts:
        first, stride = split(rank, shape)
        packed = components.planned(first, shape)
        return (packed,) if stride is None else (packed, sample.planned(stride, shape))

    def components(self, rank: int, shape: tuple[int, int]) -> int:
        return split(rank, shape)[0]

    def limit(self, asked: int, found: int) -> int:
        return asked

    def left(self, singular: Tensor, ranks: np.ndarray, shape: tuple[int, int]) -> Tensor:
        """That of components at these bytes: a sketch gains from bytes where they do."""
        return residual.METHOD.left(singular, ranks, shape)

    def predicted_error(self, singular: Tensor, ranks: Any, shape: tuple[int, int] | None) -> Tensor:
        return self._with_sample(ranks, shape, lambda first: residual.METHOD.predicted_error(singular, first, shape))

    def error_bounds(self, singular: Tensor, ranks: Any, shape: tuple[int, int] | None) -> tuple[Tensor, Tensor]:
        """Those of its components, with the expected noise of its sample."""
        bounds = residual.METHOD.error_bounds
        return (
            self._with_sample(ranks, shape, lambda first: bounds(singular, first, shape)[0]),
            self._with_sample(ranks, shape, lambda first: bounds(singular, first, shape)[1]),
        )

    def _with_sample(self, ranks: Any, shape: tuple[int, int] | None, left: Callable[[list[int]], Tensor]) -> Tensor:
        """Errors at each rank, from the errors that ``left`` gives of components."""
        if shape is None:
            raise ValueError("how a sketch splits its bytes depends on the shape: give it")
        splits = [split(rank, shape) for rank in torch.as_tensor(ranks).flatten().tolist()]
        errors = left([first for first, _ in splits])
        return torch.stack([sample.expected_error(error, stride) for error, (_, stride) in zip(errors, splits)])


METHOD = Sketch()
