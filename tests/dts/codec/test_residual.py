"""The residual codec: its fast sweep against a naive one, and its quality against the prototype and the paper."""

import importlib.util

import pytest
import torch
from matrices import power_law, squared_error

from dts.codec import compress_tensor
from dts.codec.alternations import fit, rounded, sweep
from dts_kernels.reference import factor_values


def test_sweep_is_coordinate_descent_over_the_dense_misfit():
    generator = torch.Generator().manual_seed(0)
    m, n, k = 30, 20, 70  # more than a chunk, and not a multiple of a block
    delta, u, v = (torch.randn(shape, generator=generator).double() for shape in ((m, n), (k, m), (k, n)))
    u, v, sigma = rounded(3 * u), rounded(3 * v), torch.rand(k, generator=generator).double() + 0.1
    naive = u.clone()
    for i in range(k):
        misfit = delta - (naive.T * sigma) @ v
        target = naive[i] + 1.2 * (misfit @ v[i]) / (sigma[i] * v[i].square().sum())
        naive[i] = rounded(target)
    sweep(u, v @ delta.T, v @ v.T, sigma, 1.2)
    assert torch.equal(u, naive)


def test_fit_is_least_squares_with_positive_sigma():
    generator = torch.Generator().manual_seed(0)
    delta = torch.randn(30, 20, generator=generator).double()
    u, v = (rounded(3 * torch.randn(9, size, generator=generator)).double() for size in (30, 20))
    products = torch.einsum("km,kn->mnk", u, v).flatten(0, 1)
    best = torch.linalg.lstsq(products, delta.flatten()[:, None]).solution[:, 0]
    assert (best < 0).any()
    moments = u @ delta
    sigma, explained = fit(u, v, moments)
    assert torch.allclose(sigma.double(), best.abs(), rtol=1e-4)
    assert torch.allclose(moments, u @ delta)
    misfit = delta - (u.T * sigma.double()) @ v
    assert explained == pytest.approx((delta.square().sum() - misfit.square().sum()).item(), rel=1e-6)


@pytest.fixture(scope="module")
def prototype(shared):
    spec = importlib.util.spec_from_file_location("prototype", shared / "prototypes" / "residual_encoder.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("m, n, exponent", [(256, 192, 0.8), (384, 128, 0.5), (192, 192, 1.2)])
@pytest.mark.parametrize("fraction", [0.05, 0.1, 0.3])
def test_beats_the_prototype_and_the_paper(prototype, m, n, exponent, fraction):
    delta = power_law(m, n, exponent)
    rank = int(fraction * min(m, n))
    torch.manual_seed(0)
    u, sigma, v = prototype.encode(delta, rank, keep_norm=False)
    kept = 1 - squared_error(delta, (u * sigma) @ v)
    factors = compress_tensor(delta, rank=rank)
    share = (factors.reconstruct().norm() / delta.norm()) ** 4  # what the same codes explain at their best scale
    assert 1 - share < 0.97 * (1 - kept)
    assert 1 - share < 0.95 * compress_tensor(delta, method="paper", rank=rank).squared_error


def test_more_rank_than_the_matrix_has_corrects_the_rounding():
    generator = torch.Generator().manual_seed(0)
    delta = torch.randn(60, 4, generator=generator) @ torch.randn(4, 50, generator=generator)
    errors = [compress_tensor(delta, rank=rank).squared_error for rank in (4, 8, 16)]
    assert errors[0] > 2.5 * errors[1] and errors[1] > 2.5 * errors[2]


def test_components_come_largest_first():
    packed = compress_tensor(power_law(96, 64, 0.7), rank=24).packed
    (u, v), sigma = factor_values(packed), packed.sigma
    assert (sigma > 0).all() and ((sigma * u.norm(dim=0) * v.norm(dim=0)).diff() < 1e-6).all()
