"""All elements, in few bits each."""

from __future__ import annotations

import torch

from benchmarks.quality.peers.common import Deltas, Encoded
from benchmarks.quality.peers.rounding import uniform
from dts import sums


def bitdelta(tasks: list[Deltas], fraction: None, seed: int) -> list[Encoded]:
    """BitDelta before its distillation (which needs data): signs times the mean magnitude, 1 bit an element."""
    out = []
    for deltas in tasks:
        result = {name: torch.where(d > 0, 1.0, -1.0) * sums.mean(d.abs()) for name, d in deltas.items()}
        bits = sum(d.numel() + 16 for d in deltas.values())
        out.append(Encoded(result, bits, bits))
    return out


def tvq(bits: int):
    """Task vector quantisation: the delta, uniformly, in `bits` bits an element; 4, 3 and 2 are published."""

    def encode(tasks: list[Deltas], fraction: None, seed: int) -> list[Encoded]:
        size = [sum(bits * d.numel() + 64 for d in deltas.values()) for deltas in tasks]
        return [Encoded({n: uniform(d, bits) for n, d in deltas.items()}, s, s) for deltas, s in zip(tasks, size)]

    return encode


def rtvq(tasks: list[Deltas], fraction: None, seed: int, base_bits: int = 3, bits: int = 2) -> list[Encoded]:
    """Residual task vector quantisation, as published with 3 bits for the mean of all deltas, kept once, and 2 bits for
    what a task's delta is beyond the rounded mean."""
    base = {name: uniform(sum(deltas[name] for deltas in tasks) / len(tasks), base_bits) for name in tasks[0]}
    shared = sum(base_bits * d.numel() + 64 for d in base.values())
    out = []
    for deltas in tasks:
        result = {name: base[name] + uniform(d - base[name], bits) for name, d in deltas.items()}
        size = sum(bits * d.numel() + 64 for d in deltas.values())
        out.append(Encoded(result, size, size + shared / len(tasks), shared))
    return out
