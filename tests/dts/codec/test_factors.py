"""Prefixes that know their best sigma and error from stored codes alone; bytes; parts."""

import pytest
import torch
from matrices import power_law, squared_error

from dts.codec import Factors, Part, compress_tensor
from dts_kernels.reference import factor_values


@pytest.fixture(scope="module")
def delta():
    return power_law(96, 64, 0.7)


@pytest.fixture(scope="module")
def factors(delta):
    return compress_tensor(delta, rank=24)


@pytest.mark.parametrize("rank", [1, 5, 23])
def test_prefix_has_the_best_sigma_of_its_codes(delta, factors, rank):
    prefix = factors.prefix(rank)
    u, v = factor_values(factors.packed, torch.float64)
    products = (u[:, None, :rank] * v[None, :, :rank]).flatten(0, 1)  # the components as columns
    best = torch.linalg.lstsq(products, delta.double().flatten()[:, None]).solution[:, 0]
    share = ((products @ best).norm() / delta.double().norm()) ** 2
    best /= share**0.25
    assert torch.allclose(prefix.packed.sigma.double(), best, rtol=1e-4, atol=1e-6)
    assert prefix.squared_error == pytest.approx(squared_error(delta, prefix.reconstruct()), abs=1e-5)
    assert factors.prefix_errors()[rank].item() == pytest.approx(prefix.squared_error, abs=1e-6)
    assert prefix.reconstruct().norm().item() == pytest.approx(factors.norm * share.item() ** 0.25, rel=1e-4)
    assert torch.equal(factors.reconstruct(rank=rank), prefix.reconstruct())


def test_prefix_of_a_prefix_is_the_prefix(factors):
    assert torch.allclose(factors.prefix(15).prefix(7).packed.sigma, factors.prefix(7).packed.sigma, rtol=1e-4)


def test_prefix_edges(factors):
    assert factors.prefix(99) is factors
    nothing = factors.prefix(0)
    assert nothing.rank == 0 and nothing.parts == () and not nothing.reconstruct().any()
    assert nothing.squared_error == factors.prefix_errors()[0] == 1
    with pytest.raises(ValueError, match="-1"):
        factors.prefix(-1)


def test_paper_prefix_keeps_sigma(delta):
    factors = compress_tensor(delta, method="paper", rank=10)
    prefix = factors.prefix(6)
    assert torch.equal(prefix.packed.sigma, factors.packed.sigma[:6]) and prefix.squared_error is None
    with pytest.raises(ValueError, match="residual"):
        factors.prefix_errors()
    assert torch.equal(factors.reconstruct(rank=6), prefix.reconstruct())


def test_nbytes_counts_what_is_stored(delta):
    delta = delta.clone()
    delta[::3] = 0
    factors = compress_tensor(delta, rank=10)
    rows, columns = delta.any(1).sum().item(), 64
    assert factors.nbytes == 3 * (rows + columns) + 4 * 10 + 96 // 8
    paper = compress_tensor(delta, method="paper", rank=10)
    assert paper.nbytes == factors.nbytes + 4 * 8


def test_parts_are_added_up_where_the_index_says():
    parts = compress_tensor(power_law(24, 20, 0.7), "sketch", rank=16).stored
    rows = torch.arange(0, 48, 2)
    factors = Factors(parts, (48, 20), rows, None, 1.0, None)
    assert factors.parts == (Part("residual", factors.rank), Part("sample", 0))
    assert factors.compact_shape == (24, 20) and factors.packed is parts[0] and factors.samples == parts[1:]
    whole = factors.reconstruct()
    assert torch.equal(whole[rows], Factors(parts, (24, 20), None, None, 1.0, None).reconstruct())
    assert not whole[1::2].any()
    each = [Factors((part,), (48, 20), rows, None, 1.0, None) for part in parts]
    torch.testing.assert_close(whole, each[0].reconstruct() + each[1].reconstruct())
    assert factors.nbytes == sum(one.nbytes for one in each) - factors.index_nbytes
    assert factors.low_rank().parts == factors.parts[:1] and each[0].low_rank() is each[0]
    assert whole.abs().max() <= factors.largest


def test_factors_of_no_part_are_zeros():
    nothing = Factors((), (6, 5), torch.tensor([1, 4]), None, 0.0, 0.0)
    assert nothing.rank == 0 and nothing.parts == () and torch.equal(nothing.reconstruct(), torch.zeros(6, 5))
    assert nothing.packed.shape == (2, 5)
