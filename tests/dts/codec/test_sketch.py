"""Method "sketch": residual components, and an unbiased sample of what they leave."""

import pytest
import torch

from dts.codec import codes, compress_tensor, error_bounds, predicted_error, singular_values, sketch
from dts.codec.shorter import shortened
from dts_kernels.layout import VALUES, unpack
from dts_kernels.samples import columns, dense


def delta(m, n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    low = torch.randn(m, 6, generator=generator) @ torch.randn(6, n, generator=generator) / 3
    return 0.01 * (low + torch.randn(m, n, generator=generator))


@pytest.mark.parametrize("shape", [(64, 64), (48, 200), (200, 48), (17, 19)])
@pytest.mark.parametrize("rank", [1, 4, 8, 20, 64])
def test_takes_the_bytes_of_residual_components_and_no_more(shape, rank):
    rank = min(rank, 4 * min(shape))
    ours, plain = (compress_tensor(delta(*shape), method, rank=rank) for method in ("sketch", "residual"))
    assert ours.nbytes <= plain.nbytes
    first, stride = sketch.split(rank, shape)
    assert ours.rank == first and [s.stride for s in ours.samples] == ([] if stride is None else [stride])
    assert [part.kind for part in ours.parts] == ["residual"] * (first > 0) + ["sample"] * (stride is not None)
    if rank >= 20:  # what whole bytes a row leave over
        assert ours.nbytes > plain.nbytes - shape[0] - sum(shape) - 20


def test_samples_are_the_rest_rounded_at_their_places():
    matrix = delta(40, 96)
    factors = compress_tensor(matrix, "sketch", rank=24)
    half = factors.low_rank()
    assert torch.equal(half.packed.u, compress_tensor(matrix, rank=factors.rank).packed.u)
    (sample,) = factors.samples
    at = columns(sample.shape, sample.stride, sample.seed)
    real = at < 96
    kept = (matrix - half.reconstruct()).gather(1, at.clamp(max=95))[real]
    values = torch.tensor(VALUES)[unpack(sample.codes, sample.elements).long()][real]
    assert torch.equal(values.sign(), kept.sign())
    assert kept[values.abs() == 4].abs().min() >= kept[values.abs() == 1].abs().max()
    # the scale: as many times as elements are left out, at the elements' own norm
    wanted = sample.stride * kept.norm() / values.norm()
    assert sample.scale == pytest.approx(wanted.item(), rel=1e-5)
    assert sample.scale == torch.tensor(sample.scale).item()  # a float32
    cosine = torch.nn.functional.cosine_similarity(values, kept, dim=0)
    assert cosine > codes.KEPT**0.5 - 0.02


@pytest.mark.parametrize("share", [(3, 4), (1, 2), (3, 16)])
def test_some_elements_of_a_sample_are_a_sample_of_the_same(share):
    factors = compress_tensor(delta(40, 600), "sketch", rank=64)
    thin = shortened(factors, (factors.rank, share), False)
    (whole,), (some,) = factors.samples, thin.samples
    assert some.share == share and some.codes.numel() < 1.05 * whole.codes.numel() * share[0] / share[1] + 40
    assert thin.packed is factors.packed and thin.squared_error is None
    larger, smaller = dense(whole), dense(some)
    stays = smaller != 0
    torch.testing.assert_close(smaller[stays], larger[stays] * (share[1] / share[0]))
    again = shortened(thin, (thin.rank, (1, 16)), False).samples[0]
    torch.testing.assert_close(dense(again), dense(shortened(factors, (factors.rank, (1, 16)), False).samples[0]))


def test_what_fewer_components_leave_is_in_the_sample():
    matrix = delta(40, 600)
    factors = compress_tensor(matrix, "sketch", rank=64)
    thin = shortened(factors, (4, (1, 2)), False)
    first = factors.low_rank().prefix(4)
    assert torch.equal(thin.packed.sigma, first.packed.sigma) and thin.rank == 4 < factors.rank
    (sample,) = thin.samples
    at = columns(sample.shape, sample.stride, sample.seed, share=(1, 2))
    real = at < 600
    kept = (matrix - first.reconstruct()).gather(1, at.clamp(max=599))[real]
    values = dense(sample).gather(1, at.clamp(max=599))[real]
    cosine = torch.nn.functional.cosine_similarity(values, kept, dim=0)
    assert cosine > 0.9  # rounded twice
    assert values.norm() == pytest.approx(2 * sample.stride * kept.norm().item(), rel=0.05)


def test_what_cannot_be_thinned_is_refused():
    factors = compress_tensor(delta(40, 600), "sketch", rank=64)
    half = shortened(factors, (8, (1, 2)), False)
    for wrong, rank, share, match in (
        (factors.low_rank(), 4, (1, 2), "one sample of what"),
        (factors, 0, None, "have no"),
        (factors, factors.rank + 1, (1, 2), "have no"),
        (half, 8, (3, 4), r"have no 8 and \(3, 4\)"),
    ):
        with pytest.raises(ValueError, match=match):
            shortened(wrong, (rank, share), False)


@pytest.mark.parametrize("shape", [(384, 384), (384, 1536), (1536, 384)])
def test_a_block_of_a_large_matrix_is_a_sample_alone(shape):
    matrix = delta(*shape)
    factors = compress_tensor(matrix, "sketch", rank=4)
    (sample,) = factors.samples
    assert factors.rank == 0 and sample.stride >= sketch.LONE and sketch.split(8, shape)[0] == 4
    error = ((factors.reconstruct().double() - matrix) ** 2).sum() / (matrix.double() ** 2).sum()
    assert factors.squared_error == pytest.approx(error.item(), rel=1e-5)
    assert predicted_error(singular_values(matrix), [4], "sketch", shape).item() == pytest.approx(error.item(), rel=0.1)
    thin = shortened(factors, (0, (1, 2)), False)
    assert thin.rank == 0 and thin.samples[0].share == (1, 2) and thin.nbytes <= factors.nbytes
    torch.testing.assert_close(
        dense(thin.samples[0])[dense(thin.samples[0]) != 0], 2 * dense(sample)[dense(thin.samples[0]) != 0]
    )


def test_samples_alone_of_two_layers_are_at_other_places():
    """Else their noise would be alike, and add up."""
    first, again, other = (compress_tensor(delta(384, 384, seed), "sketch", rank=4).samples[0] for seed in (0, 0, 1))
    assert first.seed == again.seed != other.seed


def test_all_of_a_block_small_matrices_keep_are_components():
    assert sketch.split(4, (64, 64)) == sketch.split(4, (192, 576)) == (4, None)


def test_on_average_it_adds_the_rest():
    matrix, mean = delta(40, 96), torch.zeros(40, 96)
    half = compress_tensor(matrix, "sketch", rank=16).low_rank().reconstruct()
    left = matrix - half
    for seed in range(200):
        mean += (compress_tensor(matrix, "sketch", rank=16, seed=seed).reconstruct() - half) / 200
    along = ((mean * left).sum() / left.square().sum()).item()
    assert along == pytest.approx(codes.KEPT**0.5, rel=0.05)
    assert (mean - along * left).norm() < 0.35 * left.norm()  # 200 draws of noise of several times the rest


@pytest.mark.parametrize("shape", [(64, 64), (48, 200), (200, 48)])
def test_errors_are_predicted_and_measured(shape):
    matrix = delta(*shape)
    factors = compress_tensor(matrix, "sketch", rank=16)
    measured = ((matrix - factors.reconstruct()).norm() / matrix.norm()).square().item()
    assert factors.squared_error == pytest.approx(measured, rel=1e-3) and measured > 1
    values = singular_values(matrix)
    assert predicted_error(values, [16], "sketch", shape).item() == pytest.approx(measured, rel=0.15)
    lower, upper = error_bounds(values, [16], "sketch", shape)
    assert lower.item() < measured < upper.item()


def test_two_matrices_have_other_places():
    one, two = (compress_tensor(delta(64, 64, seed), "sketch", rank=16).samples[0] for seed in (0, 1))
    assert one.stride == two.stride and one.seed != two.seed


def test_prefixes_are_those_of_the_components():
    factors = compress_tensor(delta(48, 200), "sketch", rank=32)
    half = compress_tensor(delta(48, 200), rank=factors.rank)
    for rank in (0, 5, factors.rank - 1):
        assert not factors.prefix(rank).samples
        torch.testing.assert_close(factors.prefix(rank).reconstruct(), half.prefix(rank).reconstruct())
        assert factors.prefix(rank).squared_error == pytest.approx(half.prefix(rank).squared_error, rel=1e-4)
    assert factors.prefix(factors.rank) is factors


def test_what_components_explain_alone_needs_no_sample():
    generator = torch.Generator().manual_seed(0)
    signs = lambda size: torch.randn(size, 1, generator=generator).sign()  # noqa: E731
    factors = compress_tensor(signs(40) @ signs(30).T, "sketch", rank=16)
    assert [part.kind for part in factors.parts] == ["residual"] and factors.squared_error < 1e-6


def test_zero_rows_and_columns_are_left_out_of_the_sample():
    matrix = delta(40, 96)
    matrix[3], matrix[:, 7] = 0, 0
    factors = compress_tensor(matrix, "sketch", rank=24)
    assert factors.samples[0].shape == (39, 95)
    assert not factors.reconstruct()[3].any() and not factors.reconstruct()[:, 7].any()


def test_a_target_error_is_refused():
    with pytest.raises(ValueError, match="sketch"):
        compress_tensor(delta(20, 20), "sketch", target_error=0.1)
