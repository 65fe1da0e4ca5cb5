"""One vector for all tasks, a mask for each."""

from __future__ import annotations

import torch

from benchmarks.quality.peers.common import Deltas, Encoded, fp32_bits, mask_bits


def emr(tasks: list[Deltas], fraction: None, seed: int) -> list[Encoded]:
    """EMR-Merging: of each element the sign of the sum over tasks and the largest magnitude of that sign, in fp32 and
    shared; a task keeps the mask of signs that agree with its own and one scale that keeps its mean magnitude."""
    unified = {}
    for name in tasks[0]:
        stack = torch.stack([deltas[name] for deltas in tasks])
        sign = stack.sum(0).sign()
        unified[name] = sign * (stack * sign).clamp(min=0).amax(0)
    out = []
    for deltas in tasks:
        masked = {name: unified[name] * (delta * unified[name] > 0) for name, delta in deltas.items()}
        scale = sum(d.abs().sum(dtype=torch.float64) for d in deltas.values()).item()
        scale /= sum(d.abs().sum(dtype=torch.float64) for d in masked.values()).item()
        bits = sum(d.numel() for d in deltas.values()) + 32
        out.append(Encoded({n: scale * d for n, d in masked.items()}, bits, bits, fp32_bits(deltas)))
    return out


def tall_mask(tasks: list[Deltas], fraction: None, seed: int, threshold: float = 0.4) -> list[Encoded]:
    """TALL-masks: the sum of all deltas, in fp32 and shared; a task keeps the mask of the elements where its own
    delta is at least `threshold` times the distance between the two."""
    summed = {name: sum(deltas[name] for deltas in tasks) for name in tasks[0]}
    out = []
    for deltas in tasks:
        masks = {n: d.abs() >= threshold * (summed[n] - d).abs() for n, d in deltas.items()}
        bits = sum(mask_bits(mask) for mask in masks.values())
        plain = sum(mask.numel() for mask in masks.values())
        out.append(Encoded({n: summed[n] * masks[n] for n in masks}, bits, plain, fp32_bits(deltas)))
    return out
