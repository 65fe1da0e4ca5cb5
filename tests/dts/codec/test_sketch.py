"""Method "sketch": residual components, and an unbiased estimate of what they leave."""

import hashlib

import pytest
import torch

from dts.codec import compress_tensor, error_bounds, predicted_error, singular_values, sketch
from dts.codec.residual import THRESHOLD
from dts_kernels.layout import unpack

FIRST = [
    [0, 0, 0, 0, 0, 0, 0, 0],
    [2, 2, 0, 2, 0, 0, 2, 0],
    [2, 0, 0, 0, 2, 0, 2, 2],
    [2, 0, 2, 0, 0, 2, 2, 0],
    [0, 0, 0, 2, 2, 2, 2, 0],
    [0, 0, 2, 2, 0, 0, 2, 2],
]
MANY = "dd4ab78b1efeac3dd089bfc127fec46f432047e89ff3d03b345b9cb35360d605"


def delta(m, n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    low = torch.randn(m, 6, generator=generator) @ torch.randn(6, n, generator=generator) / 3
    return 0.01 * (low + torch.randn(m, n, generator=generator))


def naive_directions(size, count, seed):
    """Omega by its definition, one element at a time."""
    order = 1
    while order < size:
        order *= 2
    stream = hashlib.shake_256(b"dts sketch %d %d" % (seed, size)).digest(8 * order + size)
    keys = [int.from_bytes(stream[8 * i : 8 * i + 8], "little") for i in range(order)]
    columns = sorted(range(order), key=keys.__getitem__)[:count]
    flips = [byte & 1 for byte in stream[8 * order :]]
    return [[(flips[i] + (i & c).bit_count()) % 2 * 2 for c in columns] for i in range(size)]


@pytest.mark.parametrize(("size", "count"), [(1, 1), (5, 8), (64, 12), (300, 20), (1000, 3)])
def test_directions_are_those_of_the_definition(size, count):
    assert sketch.directions(size, count, 7).tolist() == naive_directions(size, count, 7)


def test_directions_never_change():
    """What is on disk is made of them."""
    assert sketch.directions(6, 8, 1).tolist() == FIRST
    assert hashlib.sha256(sketch.directions(1536, 64, 123).numpy().tobytes()).hexdigest() == MANY


def test_all_directions_together_are_exact():
    omega = 1.0 - sketch.directions(300, sketch.order_of(300), 3).float()
    torch.testing.assert_close(omega @ omega.T, 512 * torch.eye(300))


@pytest.mark.parametrize("shape", [(64, 64), (48, 200), (200, 48), (17, 19)])
@pytest.mark.parametrize("rank", [1, 4, 8, 20, 64])
def test_takes_the_bytes_of_residual_components_and_no_more(shape, rank):
    ours, plain = (compress_tensor(delta(*shape), method, rank=rank) for method in ("sketch", "residual"))
    assert ours.nbytes <= plain.nbytes
    first, count = sketch.split(rank, shape)
    assert ours.rank == first + count and ours.method == ("sketch" if count else "residual")
    if rank >= 20 and count < sketch.order_of(max(shape)):
        assert ours.nbytes > plain.nbytes - min(shape) - 16


@pytest.mark.parametrize("shape", [(40, 96), (96, 40)])
def test_estimate_is_the_first_half_and_on_average_shrink_of_the_rest(shape):
    matrix = delta(*shape)
    first, _ = sketch.split(16, shape)
    half = compress_tensor(matrix, rank=first)
    left = matrix - half.reconstruct()
    mean = torch.zeros(shape)
    for seed in range(200):
        factors = compress_tensor(matrix, "sketch", rank=16, seed=seed)
        if not seed:
            assert torch.equal(factors.packed.prefix(first).u, half.packed.u)
            assert torch.equal(factors.residual().reconstruct(), half.reconstruct())
        mean += (factors.reconstruct() - half.reconstruct()) / 200
    along = ((mean * left).sum() / left.square().sum()).item()
    # rounding a column of normal elements turns it by the angle whose cosine is sqrt(0.8795)
    assert along == pytest.approx(sketch.SHRINK * 0.8795**0.5, rel=0.05)
    assert (mean - along * left).norm() < 0.35 * left.norm()  # 200 draws of noise of several times the rest


def test_columns_are_rounded_to_the_nearest_and_keep_their_norm():
    columns = torch.randn(500, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 10.0, 0.1])
    codes, sigma = sketch.rounded(columns)
    values = torch.tensor([1.0, 4.0, -1.0, -4.0])[codes.long()]
    torch.testing.assert_close((values * sigma).norm(dim=0), columns.norm(dim=0))
    cosine = torch.nn.functional.cosine_similarity(values, columns, dim=0)
    assert (cosine > 0.8795**0.5 - 0.01).all() and THRESHOLD == 2.5


@pytest.mark.parametrize("shape", [(64, 64), (48, 200), (200, 48)])
def test_errors_are_predicted_and_measured(shape):
    matrix = delta(*shape)
    factors = compress_tensor(matrix, "sketch", rank=16)
    measured = ((matrix - factors.reconstruct()).norm() / matrix.norm()).square().item()
    assert factors.squared_error == pytest.approx(measured, rel=1e-4) and measured > 1
    values = singular_values(matrix)
    assert predicted_error(values, [16], "sketch", shape).item() == pytest.approx(measured, rel=0.15)
    lower, upper = error_bounds(values, [16], "sketch", shape)
    assert lower.item() < measured < upper.item()


def test_two_matrices_have_other_directions():
    one, two = (compress_tensor(delta(64, 64, seed), "sketch", rank=16) for seed in (0, 1))
    first = one.sketch[1]
    assert one.sketch[2] != two.sketch[2]
    assert not torch.equal(unpack(one.packed.v, one.rank)[:, first:], unpack(two.packed.v, two.rank)[:, first:])


def test_prefixes_keep_the_residual_components_and_then_the_scale():
    matrix = delta(48, 200)
    factors = compress_tensor(matrix, "sketch", rank=32)
    half = compress_tensor(matrix, rank=factors.sketch[1])
    torch.testing.assert_close(factors.prefix(5).reconstruct(), half.prefix(5).reconstruct())
    assert factors.prefix(5).squared_error == pytest.approx(half.prefix(5).squared_error, rel=1e-4)
    cut = factors.prefix(factors.rank - 6)
    assert cut.sketch == factors.sketch and cut.squared_error is None
    noise = lambda f: (f.reconstruct() - half.reconstruct()).norm() ** 2  # noqa: E731
    expected = factors.parts[-1].rank / cut.parts[-1].rank
    assert noise(cut) / noise(factors) == pytest.approx(expected, rel=0.1)


def test_what_components_explain_alone_needs_no_sketch():
    generator = torch.Generator().manual_seed(0)
    signs = lambda size: torch.randn(size, 1, generator=generator).sign()  # noqa: E731
    factors = compress_tensor(signs(40) @ signs(30).T, "sketch", rank=16)
    assert factors.method == "residual" and factors.squared_error < 1e-6


def test_a_target_error_is_refused():
    with pytest.raises(ValueError, match="sketch"):
        compress_tensor(delta(20, 20), "sketch", target_error=0.1)
