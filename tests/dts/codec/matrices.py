"""Matrices whose spectrum is known."""

import torch
from torch import Tensor


def power_law(m: int, n: int, exponent: float, seed: int = 0) -> Tensor:
    """Random singular vectors, singular values i^-exponent: float32 [m, n]."""
    generator = torch.Generator().manual_seed(seed)
    rank = min(m, n)
    left, right = (torch.linalg.qr(torch.randn(size, rank, generator=generator))[0] for size in (m, n))
    return (left * torch.arange(1, rank + 1).float() ** -exponent) @ right.T


def squared_error(delta: Tensor, approximation: Tensor) -> float:
    """||delta - approximation||^2 / ||delta||^2 in float64."""
    return ((delta.double() - approximation.double()).norm() / delta.double().norm()).square().item()
