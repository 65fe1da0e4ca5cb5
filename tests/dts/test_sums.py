"""Sums in blocks: right where float32's are not, of any layout and dtype, and with no wide copy of a whole tensor."""

import pytest
import torch

from dts import sums
from dts.adapter import compress

LARGE = 70_000_000  # elements of a large language model's embedding


@pytest.mark.parametrize("block", [7, 1 << 20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_every_layout(monkeypatch, block, dtype):
    monkeypatch.setattr(sums, "BLOCK", block)
    generator = torch.Generator().manual_seed(0)
    whole = torch.randn(6, 10, 4, generator=generator).to(dtype)
    other = torch.randn(6, 10, 4, generator=generator).to(dtype)
    for a, b in (
        (whole, other),
        (whole.mT, other.mT),
        (whole[::2, 1:], other[1::2, :-1]),
        (whole[0, 0, 0], other[0, 0, 0]),
        (whole[:0], other[:0]),
        (whole.mT, other.mT.contiguous()),
    ):
        x, y = a.double(), b.double()
        assert sums.energy(a) == pytest.approx(x.square().sum().item(), rel=1e-12)
        assert sums.norm(a) == pytest.approx(x.norm().item(), rel=1e-12)
        assert sums.dot(a, b) == pytest.approx((x * y).sum().item(), rel=1e-10)
        assert sums.squared_difference(a, b) == pytest.approx((x - y).square().sum().item(), rel=1e-12)
        assert sums.mean(a) == pytest.approx(x.mean().item(), rel=1e-10, nan_ok=True)


def test_infinite_elements_of_both_have_no_difference():
    inf = float("inf")
    a, b = torch.tensor([inf, -inf, 3.0]), torch.tensor([inf, -inf, 1.0])
    assert sums.squared_difference(a, b) == 4 and sums.squared_difference(a, -b) == inf
    assert sums.squared_difference(torch.tensor([float("nan")]), torch.ones(1)) != 0


def test_shapes_must_agree():
    with pytest.raises(ValueError, match="one shape"):
        sums.dot(torch.ones(3), torch.ones(3, 1))


def test_as_many_elements_as_an_embedding_has():
    """Values known by count alone: a repeated byte pattern."""
    pattern = torch.arange(1, 8, dtype=torch.uint8)
    x = pattern.repeat(LARGE // 7)
    assert sums.energy(x) == (LARGE // 7) * 140.0
    assert sums.squared_difference(x, torch.zeros((), dtype=torch.uint8).expand(len(x))) == (LARGE // 7) * 140.0


@pytest.mark.slow
def test_what_compress_makes_of_an_embedding_passes_verify(tmp_path):
    """Most rows exactly zero, as training leaves an embedding, but more elements than float32 sums can hold."""
    rows, columns = LARGE // 1024, 1024
    generator = torch.Generator().manual_seed(0)
    base = {"embed.weight": torch.zeros(rows, columns, dtype=torch.bfloat16)}
    left, right = (torch.randn(size, 1, generator=generator).bfloat16() for size in (rows, columns))
    tuned = {"embed.weight": (left * right.T).bfloat16()}
    adapter = compress(base, tuned, method="residual", rank_fraction=0.001)
    report = adapter.verify(base, tuned)
    assert report.ok, report.problems


def test_a_difference_is_the_one_made_at_once():
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(3, (1 << 19) + 1, generator=generator).bfloat16() for _ in range(2))
    assert torch.equal(sums.difference(a, b), a.float() - b.float())
    with pytest.raises(ValueError, match="one shape"):
        sums.difference(a, b.T)
