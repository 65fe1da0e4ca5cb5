"""The truth itself, against dense products written down again here."""

import pytest
import torch

from dts_kernels import PackedFactors, pack, reference
from dts_kernels.layout import VALUES, unpack


def factors(m, n, k, levels=False, size=1e-3):
    u, v = (pack(torch.randint(0, 4, (rows, k), dtype=torch.uint8)) for rows in (m, n))
    return PackedFactors(u, v, torch.rand(k) * size, torch.randn(2, 4) if levels else None)


def dense(f):
    """float64, element by element."""
    u_values, v_values = (VALUES, VALUES) if f.levels is None else f.levels.tolist()
    u, v = unpack(f.u, f.rank).tolist(), unpack(f.v, f.rank).tolist()
    sigma = f.sigma.tolist()
    return torch.tensor(
        [[sum(s * u_values[a] * v_values[b] for s, a, b in zip(sigma, row, column)) for column in v] for row in u],
        dtype=torch.float64,
    )


@pytest.mark.parametrize("levels", [False, True])
def test_reconstruct_is_the_sum_of_components(levels):
    torch.manual_seed(0)
    f = factors(5, 7, 6, levels)
    torch.testing.assert_close(reference.reconstruct(f, torch.float64), dense(f), rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    "dtype,tolerance", [(torch.float64, 1e-14), (torch.float32, 1e-6), (torch.float16, 1e-3), (torch.bfloat16, 8e-3)]
)
def test_product_rounds_once(dtype, tolerance):
    torch.manual_seed(0)
    f, x = factors(40, 70, 33), torch.randn(5, 70).to(dtype)
    wanted = x.double() @ dense(f).T
    got = reference.product(x, f, gamma=torch.full((5,), 2.0))
    assert ((got - 2 * wanted).norm() / (2 * wanted).norm()).item() < tolerance


@pytest.mark.parametrize("size", [1e-9, 1e-3, 1e3])
def test_range_exponent_keeps_fp16_in_range(size):
    torch.manual_seed(0)
    f = factors(40, 4096, 33, size=size)
    x = torch.randn(3, 4096).half() * 100
    wanted = x.double() @ reference.reconstruct(f, torch.float64).T
    got = reference.product(x, f)
    assert torch.isfinite(got).all()
    assert ((got - wanted).norm() / wanted.norm()).item() < 1e-3


def test_range_exponent_of_nothing_is_zero():
    assert reference.range_exponent(factors(3, 4, 0)) == 0
    assert reference.range_exponent(factors(3, 4, 2, size=0.0)) == 0


def test_delta_linear_adds_each_rows_tasks():
    torch.manual_seed(0)
    known, x = {0: factors(9, 13, 5), 2: factors(9, 13, 7, True)}, torch.randn(4, 13, dtype=torch.float64)
    slots = torch.tensor([[0, 2], [-1, -1]], dtype=torch.int32)
    out = reference.delta_linear(x, known, slots, torch.tensor([[0.5, 0.25], [1.0, 1.0]]), 9)
    wanted = x[:2] @ (0.5 * dense(known[0]) + 0.25 * dense(known[2])).T
    torch.testing.assert_close(out, torch.cat([wanted, torch.zeros(2, 9, dtype=torch.float64)]))
