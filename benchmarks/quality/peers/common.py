"""What every method shares: its types, how it meets a size, and what positions cost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

Deltas = dict[str, Tensor]  # float32 matrices by name


@dataclass
class Encoded:
    """One task, compressed and back."""

    deltas: Deltas
    bits: float
    published_bits: float
    shared_bits: float = 0.0  # kept once for all tasks, on top of the base


@dataclass(frozen=True)
class Peer:
    """encode(tasks, fraction, seed) -> one `Encoded` a task; `sizes`: the fractions it is measured at, None = its own.

    `whole_suite`: what it stores of one task depends on the other tasks.
    """

    encode: Callable[[list[Deltas], float | None, int], list[Encoded]]
    sizes: tuple[float, ...] | None
    source: str
    whole_suite: bool = False


@lru_cache(maxsize=512)
def svd_of(delta: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # tensors hash by identity
    return torch.linalg.svd(delta, full_matrices=False)


def largest(bits_at: Callable[[float], float], fraction: float, deltas: Deltas) -> float:
    """The largest knob in [0, 1] whose bits fit into `fraction` of fp32, by bisection."""
    allowed = fraction * fp32_bits(deltas)
    if bits_at(1.0) <= allowed:
        return 1.0
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if bits_at(middle) <= allowed else (low, middle)
    return low


def fp32_bits(deltas: Deltas) -> int:
    return 32 * sum(delta.numel() for delta in deltas.values())


def mask_bits(mask: Tensor) -> int:
    """Exact bits of the positions of True: gaps in Rice code with the best parameter, or a bitmap if that is less."""
    position = mask.flatten().nonzero()[:, 0]
    gaps = torch.diff(position, prepend=position.new_tensor([-1])) - 1
    rice = min(int((gaps >> k).sum()) + len(gaps) * (k + 1) for k in range(16))
    return min(mask.numel(), rice) + 4


def rice_bits_an_element(density: float) -> float:
    """Expected `mask_bits` an element of a random mask."""
    if not 0 < density < 1:
        return 0.0 if density <= 0 else 1.0
    # a gap g has probability density (1 - density)^g, and g >> k is geometric with ratio (1 - density)^(2^k)
    ratios = ((1 - density) ** (2**k) for k in range(16))
    return min(1.0, min(density * (k + 1 + ratio / (1 - ratio)) for k, ratio in enumerate(ratios)))
