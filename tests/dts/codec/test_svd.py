"""Singular triplets from Gram matrices against LAPACK's."""

import pytest
import torch
from matrices import power_law

from dts.codec.svd import exact_svd, gram, leading_svd, subspace_svd


@pytest.mark.parametrize("shape", [(60, 40), (40, 60), (2500, 30)])
def test_exact_svd(shape):
    x = power_law(*shape, 1.0)
    u, s, vh = exact_svd(x, 20)
    expected = torch.linalg.svd(x, full_matrices=False)
    assert torch.allclose(s, expected.S[:20], rtol=1e-5)
    assert torch.allclose((u * s) @ vh, (expected.U[:, :20] * expected.S[:20]) @ expected.Vh[:20], atol=1e-6)
    for vectors in (u.T @ u, vh @ vh.T):
        assert torch.allclose(vectors, torch.eye(20), atol=1e-5)


def test_exact_svd_leaves_noise_out():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(50, 4, generator=generator) @ torch.randn(4, 40, generator=generator)
    assert len(exact_svd(x, 30)[1]) == 4


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0])
def test_subspace_svd_holds_nearly_all_the_energy_there_is(exponent):
    x = power_law(300, 200, exponent)
    u, s, vh = subspace_svd(x, 30, seed=0)
    best = torch.linalg.svdvals(x)[:30].square().sum()
    assert s.square().sum() > 0.95 * best if exponent else s.square().sum() > 0.75 * best
    assert torch.allclose((u.T @ x @ vh.T), torch.diag(s), atol=1e-4)


def test_leading_svd_is_exact_where_that_is_cheap():
    x = power_law(300, 200, 0.5)
    assert torch.equal(leading_svd(x, 5, seed=0)[1], exact_svd(x, 5)[1])


def test_gram_in_chunks():
    x = torch.randn(2500, 7, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(gram(x), x.double().T @ x.double(), rtol=1e-12)
