"""Low rank: singular vectors, rounded."""

from __future__ import annotations

import math

import torch

from benchmarks.quality.peers.common import Deltas, Encoded, fp32_bits, largest, svd_of
from benchmarks.quality.peers.rounding import in_groups, uniform


def low_rank(round_factor, bits_a_value, published_bits_a_value, scale_bits):
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

            r = largest(lambda r: total(ranks(r), bits_a_value), fraction, deltas)  # noqa: B023
            result = {}
            for (name, delta), rank in zip(deltas.items(), ranks(r)):
                u, s, vh = svd_of(delta)
                result[name] = (round_factor(u[:, :rank]) * s[:rank]) @ round_factor(vh[:rank].T).T
            cost = (total(ranks(r), a_value) for a_value in (bits_a_value, published_bits_a_value))
            out.append(Encoded(result, *cost))
        return out

    return encode


def tsv_compress(tasks: list[Deltas], fraction: None, seed: int) -> list[Encoded]:
    """TSV-Compress: of each of T tasks the first 1 / T of the singular triplets, in fp32."""
    out = []
    for deltas in tasks:
        result, bits = {}, 0
        for name, delta in deltas.items():
            rank = max(1, min(delta.shape) // len(tasks))
            u, s, vh = svd_of(delta)
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
    triplets = [(-(s * s).item() / costs[name], name) for name, d in deltas.items() for s in svd_of(d)[1]]
    left, ranks = fraction * fp32_bits(deltas), dict.fromkeys(deltas, 0)
    for _, name in sorted(triplets):
        if costs[name] <= left:
            left -= costs[name]
            ranks[name] += 1
    result = {}
    for name, delta in deltas.items():
        (u, s, vh), k = svd_of(delta), ranks[name]
        u, v = (in_groups(factor, width, group) for factor in (u[:, :k].T, vh[:k]))
        result[name] = (u.T * s[:k].half().float()) @ v
    bits = sum(costs[name] * k for name, k in ranks.items())
    return Encoded(result, bits, bits)


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
            u, s, vh = svd_of(delta)
            k = len(widths)
            u = torch.stack([uniform(u[:, i], widths[i], group) for i in range(k)], 1)
            v = torch.stack([uniform(vh[i], widths[i], group) for i in range(k)])
            result[name] = (u * s[:k].half().float()) @ v
        out.append(Encoded(result, total, total))
    return out
