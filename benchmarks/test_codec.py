"""Time of the codecs: ``OMP_NUM_THREADS=2 python -m pytest benchmarks/test_codec.py``."""

import pytest
import torch

from dts.codec import compress_tensor, singular_values

SHAPES = [(384, 384), (1536, 384), (768, 3072)]


def delta(m: int, n: int) -> torch.Tensor:
    """Singular values that fall about as those of a fine-tune do: float32 [m, n]."""
    generator = torch.Generator().manual_seed(0)
    rank = min(m, n)
    left, right = (torch.randn(size, rank, generator=generator) for size in (m, n))
    return (left * torch.arange(1, rank + 1).float() ** -0.6) @ right.T


@pytest.mark.parametrize("method", ["residual", "paper"])
@pytest.mark.parametrize("fraction", [0.1, 0.3])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: f"{s[0]}x{s[1]}")
def test_compress_tensor(benchmark, shape, fraction, method):
    factors = benchmark.pedantic(
        compress_tensor, args=(delta(*shape),), kwargs={"method": method, "rank_fraction": fraction}, rounds=3
    )
    benchmark.extra_info["squared_error"] = factors.squared_error
    assert factors.rank == int(fraction * min(shape))


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: f"{s[0]}x{s[1]}")
def test_singular_values(benchmark, shape):
    values = benchmark.pedantic(singular_values, args=(delta(*shape),), rounds=3)
    assert len(values) == min(shape)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: f"{s[0]}x{s[1]}")
def test_prefix(benchmark, shape):
    factors = compress_tensor(delta(*shape), rank_fraction=0.3)
    prefix = benchmark(factors.prefix, factors.rank // 3)
    assert prefix.rank == factors.rank // 3
