"""Ways to round numbers to few bits."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dts import sums
from dts.codec.four_group import four_group


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


def uniform(x: Tensor, bits: int, group: int | None = None) -> Tensor:
    """x rounded to 2^bits evenly spaced values from its smallest to its largest element, by groups of a flat x."""
    if group is not None and x.numel() > group:
        return torch.cat([uniform(part, bits) for part in x.split(group)])
    low, step = x.min(), (x.max() - x.min()) / (2**bits - 1)
    return low + step * ((x - low) / step).round() if step > 0 else x.clone()


def in_groups(rows: Tensor, width: int, group: int) -> Tensor:
    """`uniform` in groups along each row, with their smallest values and steps in fp16."""
    out = torch.empty_like(rows)
    for part, to in zip(rows.split(group, 1), out.split(group, 1)):
        low = part.amin(1, keepdim=True).half().float()
        step = ((part.amax(1, keepdim=True) - low) / (2**width - 1)).half().float().clamp(min=1e-7)
        to.copy_(low + step * ((part - low) / step).round().clamp(0, 2**width - 1))
    return out
