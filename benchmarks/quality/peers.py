"""Other ways to store a fine-tune's difference, plainly, with exact bytes, for comparison at equal size.

Every method takes the deltas of the same matrices of all tasks and gives back, for each task, the reconstructed
deltas and what they cost.  Biases, norms and heads are not part of it: they stay exact for every method.

A method with a size to choose takes `fraction`, the largest share of the deltas' fp32 bytes it may use, and spends as
much of it as its own rules allow; the others have the size they have.  Bytes are payload on disk: codes, scales, and
positions (Rice-coded gaps or a bitmap, whichever is smaller).  `published_bits` counts as the method's paper does.
Two gifts to the peers: file headers are not counted, and a mask that a seed can regenerate costs nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from dts import sums
from dts.codec.four_group import four_group

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


# --- low rank ---------------------------------------------------------------------------------------------------


@lru_cache(maxsize=512)
def _svd_of(delta: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # tensors hash by identity
    return torch.linalg.svd(delta, full_matrices=False)


def grouped(x: Tensor, groups: int) -> Tensor:
    """The paper's rounding with any even number of groups: each sign's elements, by magnitude, in groups / 2 equal
    parts, each at its root mean square.  groups=4 is the published method."""
    if groups == 4:
        return four_group(x)
    flat, out = x.reshape(-1), torch.zeros(x.numel())
    for sign in (1, -1):
        index = (flat * sign > 0).nonzero()[:, 0]
        order = index[(flat[index] * sign).argsort(descending=True)]
        for group in order.tensor_split(groups // 2):
            if len(group):
                out[group] = sign * (sums.energy(flat[group]) / len(group)) ** 0.5
    return out.view_as(x)


def unscaled(x: Tensor) -> Tensor:
    """Signs alone, at the size a unit vector's elements have: thresholding without a scale from the values."""
    return x.sign() / math.sqrt(x.shape[0])


def _low_rank(round_factor, bits_a_value, published_bits_a_value, scale_bits):
    """Peer: uniform rank fraction, U and V [length, rank] through `round_factor`, singular values in fp32."""

    def bits(shape: tuple[int, int], rank: int, a_value: float) -> float:
        return rank * (sum(shape) * a_value + 32) + scale_bits

    def encode(tasks: list[Deltas], fraction: float | None, seed: int) -> list[Encoded]:
        out = []
        for deltas in tasks:
            shapes = [tuple(delta.shape) for delta in deltas.values()]

            def ranks(r: float, shapes=shapes) -> list[int]:
                return [max(1, int(r * min(shape))) for shape in shapes]

            def total(ranks: list[int], a_value: float, shapes=shapes) -> float:
                return sum(bits(shape, rank, a_value) for shape, rank in zip(shapes, ranks))

            r = _largest(lambda r: total(ranks(r), bits_a_value), fraction, deltas)  # noqa: B023
            result = {}
            for (name, delta), rank in zip(deltas.items(), ranks(r)):
                u, s, vh = _svd_of(delta)
                result[name] = (round_factor(u[:, :rank]) * s[:rank]) @ round_factor(vh[:rank].T).T
            cost = (total(ranks(r), a_value) for a_value in (bits_a_value, published_bits_a_value))
            out.append(Encoded(result, *cost))
        return out

    return encode


def _largest(bits_at: Callable[[float], float], fraction: float, deltas: Deltas) -> float:
    """The largest knob in [0, 1] whose bits fit into `fraction` of fp32, by bisection."""
    allowed = fraction * fp32_bits(deltas)
    if bits_at(1.0) <= allowed:
        return 1.0
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if bits_at(middle) <= allowed else (low, middle)
    return low


def tsv_compress(tasks: list[Deltas], fraction: None, seed: int) -> list[Encoded]:
    """TSV-Compress: of each of T tasks the first 1 / T of the singular triplets, in fp32."""
    out = []
    for deltas in tasks:
        result, bits = {}, 0
        for name, delta in deltas.items():
            rank = max(1, min(delta.shape) // len(tasks))
            u, s, vh = _svd_of(delta)
            result[name] = (u[:, :rank] * s[:rank]) @ vh[:rank]
            bits += 32 * rank * (sum(delta.shape) + 1)
        out.append(Encoded(result, bits, bits))
    return out


def plain_svd(width: int, group: int = 128):
    """Truncated SVD with `width` bits a factor element, in groups of 128 that each have their smallest value and step
    in fp16; triplets of the whole model in order of their energy a byte, as many as fit."""

    def encode(tasks: list[Deltas], fraction: float, seed: int) -> list[Encoded]:
        return [_plain_svd(deltas, fraction, width, group) for deltas in tasks]

    return encode


def _plain_svd(deltas: Deltas, fraction: float, width: int, group: int) -> Encoded:
    costs = {name: sum(n * width + math.ceil(n / group) * 32 for n in d.shape) + 16 for name, d in deltas.items()}
    triplets = [(-(s * s).item() / costs[name], name) for name, d in deltas.items() for s in _svd_of(d)[1]]
    left, ranks = fraction * fp32_bits(deltas), dict.fromkeys(deltas, 0)
    for _, name in sorted(triplets):
        if costs[name] <= left:
            left -= costs[name]
            ranks[name] += 1
    result = {}
    for name, delta in deltas.items():
        (u, s, vh), k = _svd_of(delta), ranks[name]
        u, v = (_in_groups(factor, width, group) for factor in (u[:, :k].T, vh[:k]))
        result[name] = (u.T * s[:k].half().float()) @ v
    bits = sum(costs[name] * k for name, k in ranks.items())
    return Encoded(result, bits, bits)


def _in_groups(rows: Tensor, width: int, group: int) -> Tensor:
    """`uniform` in groups along each row, with their smallest values and steps in fp16."""
    out = torch.empty_like(rows)
    for part, to in zip(rows.split(group, 1), out.split(group, 1)):
        low = part.amin(1, keepdim=True).half().float()
        step = ((part.amax(1, keepdim=True) - low) / (2**width - 1)).half().float().clamp(min=1e-7)
        to.copy_(low + step * ((part - low) / step).round().clamp(0, 2**width - 1))
    return out


def delta_come(tasks: list[Deltas], fraction: float, seed: int) -> list[Encoded]:
    """Delta-CoMe, 8 + 3 + 2 bits: 2 triplets in 8 bits, 32 in 3, the others that fit in 2; groups of 128, rounded to
    nearest (the published one rounds by GPTQ, which needs data)."""
    group = 128

    def row_bits(shape: tuple[int, int], bits: int) -> float:
        return sum(length * bits + math.ceil(length / group) * 32 for length in shape) + 16

    out = []
    for deltas in tasks:
        result, total = {}, 0.0
        for name, delta in deltas.items():
            left, widths = fraction * 32 * delta.numel(), []
            for index in range(min(delta.shape)):
                width = 8 if index < 2 else 3 if index < 34 else 2
                left -= row_bits(tuple(delta.shape), width)
                if left < 0 and widths:
                    break
                widths.append(width)
                total += row_bits(tuple(delta.shape), width)
            u, s, vh = _svd_of(delta)
            k = len(widths)
            u = torch.stack([uniform(u[:, i], widths[i], group) for i in range(k)], 1)
            v = torch.stack([uniform(vh[i], widths[i], group) for i in range(k)])
            result[name] = (u * s[:k].half().float()) @ v
        out.append(Encoded(result, total, total))
    return out


# --- signs, quantisation and dropping ---------------------------------------------------------------------------


def uniform(x: Tensor, bits: int, group: int | None = None) -> Tensor:
    """x rounded to 2^bits evenly spaced values from its smallest to its largest element, by groups of a flat x."""
    if group is not None and x.numel() > group:
        return torch.cat([uniform(part, bits) for part in x.split(group)])
    low, step = x.min(), (x.max() - x.min()) / (2**bits - 1)
    return low + step * ((x - low) / step).round() if step > 0 else x.clone()


def bitdelta(tasks: list[Deltas], fraction: None, seed: int) -> list[Encoded]:
    """BitDelta before its distillation (which needs data): signs times the mean magnitude, 1 bit an element."""
    out = []
    for deltas in tasks:
        result = {name: torch.where(d > 0, 1.0, -1.0) * sums.mean(d.abs()) for name, d in deltas.items()}
        bits = sum(d.numel() + 16 for d in deltas.values())
        out.append(Encoded(result, bits, bits))
    return out


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
        keep = _largest(lambda keep: _ultradelta_bits(deltas, keep, width), fraction, deltas)  # noqa: B023
        step = 0.2 * keep  # as a share of what is kept: the published 0.01 to 0.05 are for keeping 5 to 25 %
        rates = _mixed_rates(deltas, 1 - keep, step)
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


def _mixed_rates(deltas: Deltas, rate: float, step: float) -> dict[str, float]:
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
        keep = _largest(lambda keep: numel * (keep + rice_bits_an_element(keep)) + 32, fraction, deltas)  # noqa: B023
        threshold = magnitude.kthvalue(max(1, numel - int(keep * numel))).values
        signs = {name: delta.sign() * (delta.abs() > threshold) for name, delta in deltas.items()}
        active = sum(int(sign.count_nonzero()) for sign in signs.values())
        scale = sums.norm(magnitude) / math.sqrt(max(1, active))
        bits = active + sum(mask_bits(sign != 0) for sign in signs.values()) + 32
        out.append(Encoded({name: scale * sign for name, sign in signs.items()}, bits, numel + active + 32))
    return out


def tvq(bits: int):
    """Task vector quantisation: the delta, uniformly, in `bits` bits an element."""

    def encode(tasks: list[Deltas], fraction: None, seed: int) -> list[Encoded]:
        size = [sum(bits * d.numel() + 64 for d in deltas.values()) for deltas in tasks]
        return [Encoded({n: uniform(d, bits) for n, d in deltas.items()}, s, s) for deltas, s in zip(tasks, size)]

    return encode


# --- one vector for all tasks, a mask for each ------------------------------------------------------------------


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


# --- bits -------------------------------------------------------------------------------------------------------


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


SIZES = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.04)  # of fp32
ABLATIONS = (0.005, 0.02)
PEERS: dict[str, Peer] = {
    "dts paper": Peer(_low_rank(lambda x: grouped(x, 4), 2, 3, 256), SIZES, "arXiv 2512.01461"),
    "dts 2 groups": Peer(_low_rank(lambda x: grouped(x, 2), 1, 1, 128), ABLATIONS, "its ablation"),
    "dts 8 groups": Peer(_low_rank(lambda x: grouped(x, 8), 3, 3, 512), ABLATIONS, "its ablation"),
    "dts no scaling": Peer(_low_rank(unscaled, 1, 1, 0), ABLATIONS, "its ablation"),
    "svd fp16": Peer(_low_rank(lambda x: x.half().float(), 16, 16, 0), SIZES, "truncated SVD"),
    "svd 4 bit": Peer(plain_svd(4), SIZES, "truncated SVD, groups of 128"),
    "svd 8 bit": Peer(plain_svd(8), SIZES, "truncated SVD, groups of 128"),
    "delta-come": Peer(delta_come, SIZES, "arXiv 2406.08903"),
    "dare": Peer(dare, SIZES, "arXiv 2311.03099"),
    "drop 4 bit": Peer(drop_4bit, SIZES, "arXiv 2505.13563, core"),
    "ultradelta": Peer(ultradelta, SIZES, "arXiv 2505.13563", whole_suite=True),
    "t-switch": Peer(t_switch, SIZES, "arXiv 2412.00054"),
    "bitdelta": Peer(bitdelta, None, "arXiv 2402.10193"),
    "tvq 2 bit": Peer(tvq(2), None, "arXiv 2503.06921"),
    "tvq 3 bit": Peer(tvq(3), None, "arXiv 2503.06921"),
    "tsv-compress": Peer(tsv_compress, None, "arXiv 2412.00081", whole_suite=True),
    "emr": Peer(emr, None, "arXiv 2405.17461", whole_suite=True),
    "tall-mask": Peer(tall_mask, None, "arXiv 2405.07813", whole_suite=True),
}
