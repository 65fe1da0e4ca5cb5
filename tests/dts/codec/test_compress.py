"""compress_tensor on every kind of input, good and bad."""

import pytest
import torch
from matrices import power_law, squared_error

from dts.codec import Unencodable, compress_tensor, residual

METHODS = ["residual", "paper"]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtypes(method, dtype):
    delta = power_law(40, 32, 0.8).to(dtype)
    factors = compress_tensor(delta, method=method, rank=12)
    assert factors.reconstruct().dtype == torch.float32 and factors.shape == (40, 32)
    assert factors.squared_error == pytest.approx(squared_error(delta, factors.reconstruct()), abs=1e-5)
    assert factors.norm == pytest.approx(delta.double().norm().item(), rel=1e-5)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (40, 1), (2, 3), (37, 5)])
@pytest.mark.parametrize("rank", [1, 3, 1000])
def test_tiny_shapes(method, shape, rank):
    delta = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    factors = compress_tensor(delta, method=method, rank=rank)
    assert 1 <= factors.rank <= min(rank, (4 if method == "residual" else 1) * min(shape))
    assert factors.squared_error == pytest.approx(squared_error(delta, factors.reconstruct()), abs=1e-5)
    if method == "residual" and rank == 1000:
        assert factors.squared_error < 0.01


@pytest.mark.parametrize("method", METHODS)
def test_constant_is_exact_with_one_component(method):
    factors = compress_tensor(torch.full((30, 20), 0.3), method=method, rank=5)
    assert factors.rank == 1
    assert torch.allclose(factors.reconstruct(), torch.full((30, 20), 0.3))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", [(8, 6), (0, 6), (8, 0)])
def test_all_zero_has_rank_zero(method, shape):
    factors = compress_tensor(torch.zeros(shape), method=method, rank_fraction=0.3)
    assert (factors.rank, factors.norm, factors.squared_error) == (0, 0.0, 0.0)
    assert torch.equal(factors.reconstruct(), torch.zeros(shape))


@pytest.mark.parametrize("method", METHODS)
def test_zero_rows_and_columns_stay_exactly_zero(method):
    delta = power_law(50, 40, 0.8)
    delta[[0, 7, 49]] = 0
    delta[:, 3] = 0
    factors = compress_tensor(delta, method=method, rank=10)
    assert factors.packed.shape == (47, 39) and factors.rows.dtype == torch.int64
    restored = factors.reconstruct()
    assert not restored[[0, 7, 49]].any() and not restored[:, 3].any()
    assert factors.squared_error == pytest.approx(squared_error(delta, restored), abs=1e-5)
    assert factors.prefix(4).reconstruct().shape == (50, 40)


def test_non_contiguous_input_gives_the_same_factors():
    delta = power_law(40, 32, 0.8)
    padded = torch.zeros(80, 64)
    padded[::2, ::2] = delta
    first, second = compress_tensor(delta, rank=8), compress_tensor(padded[::2, ::2], rank=8)
    assert torch.equal(first.packed.u, second.packed.u) and torch.equal(first.packed.sigma, second.packed.sigma)


def test_same_seed_same_factors_whatever_the_global_state():
    delta = power_law(700, 660, 0.8)  # large enough for the seeded subspace iteration
    torch.manual_seed(1)
    state = torch.random.get_rng_state()
    first = compress_tensor(delta, rank=8, seed=3)
    assert torch.equal(state, torch.random.get_rng_state())
    torch.manual_seed(2)
    second = compress_tensor(delta, rank=8, seed=3)
    assert torch.equal(first.packed.u, second.packed.u) and torch.equal(first.packed.sigma, second.packed.sigma)


@pytest.mark.parametrize("scale", [1e-30, 1e-4, 1e30])
def test_scale_does_not_matter(scale):
    delta = power_law(40, 32, 0.8).double()
    plain, scaled = compress_tensor(delta, rank=8), compress_tensor(delta * scale, rank=8)
    assert scaled.squared_error == pytest.approx(plain.squared_error, rel=1e-2)
    assert scaled.norm == pytest.approx(plain.norm * scale, rel=1e-5)
    assert torch.allclose(scaled.packed.sigma.double(), plain.packed.sigma.double() * scale, rtol=0.05, atol=0)


@pytest.mark.parametrize("target", [0.5, 0.1, 0.03])
def test_target_error_is_met_with_little_to_spare(target):
    delta = power_law(120, 100, 0.8)
    factors = compress_tensor(delta, target_error=target)
    assert squared_error(delta, factors.reconstruct()) <= target * (1 + 1e-4)
    assert compress_tensor(delta, rank=factors.rank - max(2, factors.rank // 10)).squared_error > target


def test_unreachable_target_gives_the_largest_rank():
    factors = compress_tensor(torch.randn(6, 6, generator=torch.Generator().manual_seed(0)), target_error=1e-30)
    assert factors.rank == 24 and 1e-30 < factors.squared_error < 0.01


def test_nan_and_infinity_are_counted_and_named():
    delta = torch.ones(4, 5)
    delta[0, 0], delta[1, 1], delta[2, 2] = float("nan"), float("inf"), float("-inf")
    with pytest.raises(Unencodable, match=r"'encoder.q' has 1 NaN and 2 infinite .* of 20"):
        compress_tensor(delta, rank=1, name="encoder.q")
    with pytest.raises(Unencodable, match="1 infinite"):
        compress_tensor(torch.tensor([[1e300, 1.0]], dtype=torch.float64), rank=1)


@pytest.mark.parametrize("bad", [torch.zeros(3), torch.zeros(2, 2, 2), torch.zeros(2, 2, dtype=torch.int64)])
def test_what_is_not_a_matrix_is_refused(bad):
    with pytest.raises(Unencodable, match="matrices"):
        compress_tensor(bad, rank=1)


@pytest.mark.parametrize("sizes", [{}, {"rank": 1, "rank_fraction": 0.1}, {"rank": 0}, {"target_error": -1.0}])
def test_exactly_one_positive_size(sizes):
    with pytest.raises(ValueError, match="give one of"):
        compress_tensor(torch.ones(2, 2), **sizes)


def test_unknown_method_and_paper_with_a_target():
    with pytest.raises(ValueError, match="residual, paper"):
        compress_tensor(torch.ones(2, 2), method="best", rank=1)
    with pytest.raises(ValueError, match="residual"):
        compress_tensor(torch.ones(2, 2), method="paper", target_error=0.1)


def test_threads_are_as_before_also_after_an_error(monkeypatch):
    during = []
    encode = residual.encode

    def watched(*args, **options):
        during.append(torch.get_num_threads())
        if len(during) > 1:
            raise RuntimeError("stop")
        return encode(*args, **options)

    monkeypatch.setattr(residual, "encode", watched)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        compress_tensor(torch.randn(8, 8), rank=2)
        assert torch.get_num_threads() == 2
        with pytest.raises(RuntimeError, match="stop"):
            compress_tensor(torch.randn(8, 8), rank=2)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert during == [1, 1]
