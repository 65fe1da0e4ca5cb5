"""Prefixes that know their best sigma and error from stored codes alone; bytes; indices on disk."""

import pytest
import torch
from matrices import power_law, squared_error

from dts.codec import compress_tensor, index_from_disk, index_to_disk
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


def test_nbytes_counts_what_is_stored(delta):
    delta = delta.clone()
    delta[::3] = 0
    factors = compress_tensor(delta, rank=10)
    rows, columns = delta.any(1).sum().item(), 64
    assert factors.nbytes == 3 * (rows + columns) + 4 * 10 + 96 // 8
    paper = compress_tensor(delta, method="paper", rank=10)
    assert paper.nbytes == factors.nbytes + 4 * 8


@pytest.mark.parametrize("size", [1, 8, 9, 1000])
@pytest.mark.parametrize("share", [0.001, 0.02, 0.5, 1.0])
def test_indices_survive_the_disk_in_the_smaller_form(size, share):
    kept = (torch.rand(size, generator=torch.Generator().manual_seed(size)) < share).nonzero()[:, 0]
    stored = index_to_disk(kept, size)
    assert torch.equal(index_from_disk(stored), kept)
    assert stored.nbytes == min(4 * len(kept), (size + 7) // 8)
