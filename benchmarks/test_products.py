"""Packing, unpacking and the reference products beside the dense layer."""

import pytest
import torch

from dts_kernels import Bank, PackedFactors, Routing, delta_linear, pack, reference, unpack

SHAPES = [(384, 384, 38), (1536, 384, 115)]  # m, n, rank: MiniLM's layers at r = .1 and .3


def random_factors(m: int, n: int, rank: int) -> PackedFactors:
    generator = torch.Generator().manual_seed(0)
    codes = lambda rows: torch.randint(0, 4, (rows, rank), dtype=torch.uint8, generator=generator)  # noqa: E731
    return PackedFactors(pack(codes(m)), pack(codes(n)), torch.rand(rank, generator=generator) / rank)


@pytest.mark.parametrize("shape", SHAPES)
def test_pack(benchmark, shape):
    codes = unpack(random_factors(*shape).u, shape[2])
    packed = benchmark(pack, codes)
    assert torch.equal(unpack(packed, shape[2]), codes)


@pytest.mark.parametrize("shape", SHAPES)
def test_unpack(benchmark, shape):
    packed = random_factors(*shape).u
    assert torch.equal(pack(benchmark(unpack, packed, shape[2])), packed)


@pytest.mark.parametrize("rows", [1, 64])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("path", ["dense layer", "reference", "dispatched"])
def test_product(benchmark, path, shape, rows):
    m, n, rank = shape
    factors, x = random_factors(m, n, rank), torch.randn(rows, n)
    dense = reference.reconstruct(factors)
    bank, routing = Bank(n, m), Routing.of([0])
    bank.add(0, factors)
    run = {
        "dense layer": lambda: x @ dense.T,
        "reference": lambda: reference.product(x, factors),
        "dispatched": lambda: delta_linear(x, bank, routing),
    }[path]
    expected = x @ dense.T
    assert (benchmark(run) - expected).norm() < 3e-4 * expected.norm()  # two 8-bit digits of x, see dts_kernels/cpu
