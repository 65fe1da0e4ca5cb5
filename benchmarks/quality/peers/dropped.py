"""Most elements dropped."""

from __future__ import annotations

import math

import torch

from benchmarks.quality.peers.common import Deltas, Encoded, fp32_bits, largest, mask_bits, rice_bits_an_element
from benchmarks.quality.peers.rounding import uniform
from dts import sums


def dare(tasks: list[Deltas], fraction: float, seed: int) -> list[Encoded]:
    """DARE: a random share of the elements, in fp16, divided by that share; the mask comes from a seed."""
    return _drop_and_rescale(tasks, fraction, seed, 16, lambda delta: delta.half().float())


def drop_4bit(tasks: list[Deltas], fraction: float, seed: int) -> list[Encoded]:
    """The core of UltraDelta in its cheapest form: 4-bit values, one drop rate, a mask from a seed."""
    return _drop_and_rescale(tasks, fraction, seed, 4, lambda delta: uniform(delta, 4))


def _drop_and_rescale(tasks, fraction, seed, width, quantise) -> list[Encoded]:
    out = []
    for deltas in tasks:
        generator = torch.Generator().manual_seed(seed)
        keep = min(1.0, (fraction * fp32_bits(deltas) - 64 * len(deltas)) / (width * fp32_bits(deltas) / 32))
        result, bits = {}, 0
        for name, delta in deltas.items():
            kept = torch.rand(delta.shape, generator=generator) < keep
            result[name] = quantise(delta) * kept / keep
            bits += width * int(kept.sum()) + 64
        out.append(Encoded(result, bits, bits))
    return out


def ultradelta(tasks: list[Deltas], fraction: float, seed: int) -> list[Encoded]:
    """UltraDelta: 4-bit uniform values; thirds of the parameters by standard deviation at sparsity s + step, s and
    what keeps the mean at s; dropping inside each group of equal values; rescaled by 1 / (1 - s) and by the smallest
    trace norm of the tasks over the task's.  Positions cost bits: no seed knows the groups.  `published_bits` counts
    4 bits an element kept, which leaves the positions out."""
    width, out, trace_norms = 4, [], []
    for deltas in tasks:
        keep = largest(lambda keep: _ultradelta_bits(deltas, keep, width), fraction, deltas)  # noqa: B023
        step = 0.2 * keep  # as a share of what is kept: the published 0.01 to 0.05 are for keeping 5 to 25 %
        rates = mixed_rates(deltas, 1 - keep, step)
        generator = torch.Generator().manual_seed(seed)
        result, bits, published, trace_norm = {}, 0.0, 0.0, 0.0
        for name, delta in deltas.items():
            rounded = uniform(delta, width)
            kept = torch.zeros_like(rounded, dtype=torch.bool)
            for value in rounded.unique():
                members = (rounded.view(-1) == value).nonzero()[:, 0]
                number = len(members) - round(len(members) * rates[name])
                kept.view(-1)[members[torch.randperm(len(members), generator=generator)[:number]]] = True
            result[name] = rounded * kept / keep
            trace_norm += torch.linalg.svdvals(result[name]).sum().item()
            bits += width * int(kept.sum()) + mask_bits(kept) + 64
            published += width * int(kept.sum())
        trace_norms.append(trace_norm)
        out.append(Encoded(result, bits, published))
    for encoded, trace_norm in zip(out, trace_norms):
        for name in encoded.deltas:
            encoded.deltas[name] *= min(trace_norms) / trace_norm
    return out


def _ultradelta_bits(deltas: Deltas, keep: float, width: int) -> float:
    numel = sum(delta.numel() for delta in deltas.values())
    return numel * (width * keep + rice_bits_an_element(keep)) + 64 * len(deltas)


def mixed_rates(deltas: Deltas, rate: float, step: float) -> dict[str, float]:
    """Drop rate a tensor: `rate` + step for the third of the parameters with the least deviation, `rate` for the
    next, and for the last what makes the mean `rate`."""
    names = sorted(deltas, key=lambda name: deltas[name].std().item())
    total, seen, spent, rates, last = sum(d.numel() for d in deltas.values()), 0, 0.0, {}, []
    for name in names:
        size = deltas[name].numel()
        seen += size
        if seen > 2 * total / 3:
            last.append(name)
            continue
        rates[name] = min(1.0, rate + step if seen <= total / 3 else rate)
        spent += size * rates[name]
    size = sum(deltas[name].numel() for name in last)
    return rates | {name: min(1.0, max(0.0, (rate * total - spent) / size)) for name in last}


def t_switch(tasks: list[Deltas], fraction: float, seed: int) -> list[Encoded]:
    """T-Switch: the largest elements of the whole model as signs, one scale that keeps the norm."""
    out = []
    for deltas in tasks:
        magnitude = torch.cat([delta.abs().flatten() for delta in deltas.values()])
        numel = len(magnitude)
        keep = largest(lambda keep: numel * (keep + rice_bits_an_element(keep)) + 32, fraction, deltas)  # noqa: B023
        threshold = magnitude.kthvalue(max(1, numel - int(keep * numel))).values
        signs = {name: delta.sign() * (delta.abs() > threshold) for name, delta in deltas.items()}
        active = sum(int(sign.count_nonzero()) for sign in signs.values())
        scale = sums.norm(magnitude) / math.sqrt(max(1, active))
        bits = active + sum(mask_bits(sign != 0) for sign in signs.values()) + 32
        out.append(Encoded({name: scale * sign for name, sign in signs.items()}, bits, numel + active + 32))
    return out
