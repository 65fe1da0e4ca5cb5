"""Rows and columns of compressed matrices are those of the whole matrix, wherever they are cut."""

import pytest
import torch

from dts.codec import Factors
from dts.codec.shards import cut_sample, shard
from dts.nn.deltas import MatrixDelta
from dts_kernels import PackedFactors, Routing, Samples, pack
from dts_kernels.dispatch import exact_products
from dts_kernels.samples import dense, elements_of

DRAW = torch.Generator().manual_seed(3)


def codes(rows: int, count: int) -> torch.Tensor:
    return pack(torch.randint(0, 4, (rows, count), generator=DRAW).to(torch.uint8))


def sample(m: int, n: int, stride: int, share: tuple[int, int] = (1, 1)) -> Samples:
    return Samples(codes(m, elements_of(n, stride, share)), 0.25, stride, 0xFFFF_FF01, (m, n), share)


def components(m: int, n: int, rank: int) -> PackedFactors:
    return PackedFactors(codes(m, rank), codes(n, rank), torch.rand(rank, generator=DRAW) / 8)


def factors(shape, stored, rows=None, columns=None) -> Factors:
    return Factors(stored, shape, rows, columns, 1.0, None)


@pytest.mark.parametrize("stride", [1, 4, 7, 13])
@pytest.mark.parametrize(
    "rows, columns", [((0, 24), (0, 40)), ((12, 24), (0, 20)), ((5, 17), (20, 40)), ((8, 9), (3, 4))]
)
def test_a_cut_sample_is_that_part_of_the_sample(stride, rows, columns):
    whole = sample(24, 40, stride)
    cut = cut_sample(whole, range(*rows), range(*columns))
    assert 0 <= cut.rows < stride and 0 <= cut.columns < stride
    part = dense(cut.sample)[cut.rows :, cut.columns :]
    assert torch.equal(part, dense(whole)[rows[0] : rows[1], columns[0] : columns[1]])


@pytest.mark.parametrize("stride, share", [(1, (1, 2)), (1, (3, 16)), (2, (3, 4)), (3, (1, 8))])
@pytest.mark.parametrize(
    "rows, columns", [((0, 24), (0, 40)), ((12, 24), (0, 20)), ((5, 17), (20, 40)), ((8, 9), (3, 4))]
)
def test_a_cut_of_a_thinned_sample_is_that_part_of_it(stride, share, rows, columns):
    whole = sample(24, 40, stride, share)
    cut = cut_sample(whole, range(*rows), range(*columns))
    part = dense(cut.sample)[cut.rows :, cut.columns :]
    assert torch.equal(part, dense(whole)[rows[0] : rows[1], columns[0] : columns[1]])


GAPS = [(None, None), (torch.tensor([1, 2, 5, 9, 10, 17, 21, 22, 23]), None), (None, torch.arange(3, 33))]


@pytest.mark.parametrize("kept", GAPS, ids=["whole", "rows", "columns"])
@pytest.mark.parametrize(
    "rows, columns", [((0, 24), (0, 40)), ((0, 12), (0, 40)), ((10, 24), (13, 40)), ((3, 5), (0, 7))]
)
def test_a_shard_at_run_time_is_that_part_of_the_dense_matrix(kept, rows, columns):
    """Components and samples of two strides of three tasks, beside each other and mixed; rows of the base between."""
    m, n = (24 if kept[0] is None else len(kept[0])), (40 if kept[1] is None else len(kept[1]))
    strides = (7,), (7, 4), (4, 4)
    whole = [factors((24, 40), (components(m, n, 6), *[sample(m, n, s) for s in own]), *kept) for own in strides]
    height, width = rows[1] - rows[0], columns[1] - columns[0]
    delta = MatrixDelta((height, width))
    for slot, one in enumerate(whole):
        if own := shard(one, range(*rows), range(*columns)):
            delta.add_shard(slot, own)
    parts = torch.stack([one.reconstruct()[rows[0] : rows[1], columns[0] : columns[1]] for one in whole])
    slots = torch.tensor([[0, -1], [-1, -1], [1, -1], [2, 0], [0, 1]], dtype=torch.int32)
    routing = Routing(slots, torch.where(slots < 0, 0.0, torch.tensor([[1.0, 0.5]])))
    each = torch.stack([sum(g * parts[s] for s, g in zip(*row)) for row in zip(slots, routing.weights)])
    x, y = torch.randn(5, width, generator=DRAW), torch.randn(5, height, generator=DRAW)
    close = {"rtol": 1e-5, "atol": 1e-4}
    with exact_products():
        torch.testing.assert_close(delta.add_product(x, y.clone(), routing), y + (each @ x[..., None])[..., 0], **close)
    ids, table = torch.tensor([0, 1, height - 1, 1, height // 2]), torch.randn(5, width, generator=DRAW)
    expected = table + each[torch.arange(5), ids]
    torch.testing.assert_close(delta.add_embedding(ids, table.clone(), routing), expected, **close)
    base, one = torch.randn(height, width, generator=DRAW), Routing(slots[4:], routing.weights[4:])
    torch.testing.assert_close(delta.dense(base, one), base + each[4], **close)
    for slot in range(3):
        delta.remove(slot)
    assert torch.equal(delta.add_product(x, y.clone(), routing), y) and delta.slots == set() and delta.in_one


def test_a_shard_of_a_part_of_a_fused_matrix():
    """Rows 10 to 18 of a matrix of three fused ones."""
    one = factors((24, 40), (components(24, 40, 6), sample(24, 40, 7)))
    delta, own = MatrixDelta((24, 20)), shard(one, range(10, 18), range(20, 40))
    assert own is not None
    delta.add_shard(0, own, 8)
    expected = torch.zeros(24, 20)
    expected[8:16] = one.reconstruct()[10:18, 20:]
    routing = Routing(torch.zeros(1, 1, dtype=torch.int32), torch.ones(1, 1))
    x, close = torch.eye(20), {"rtol": 1e-5, "atol": 1e-4}
    torch.testing.assert_close(delta.dense(torch.zeros(24, 20), routing), expected, **close)
    with exact_products():
        torch.testing.assert_close(delta.add_product(x, torch.zeros(20, 24), routing), expected.T, **close)


def test_what_is_cut_away_leaves_memory():
    own = shard(factors((24, 40), (components(24, 40, 8), sample(24, 40, 4))), range(12), range(40))
    assert own is not None
    tensors = [own.factors.packed.u, own.factors.samples[0].codes]
    assert [t.untyped_storage().nbytes() for t in tensors] == [t.nbytes for t in tensors] == [24, 36]
    assert shard(factors((24, 40), (components(2, 40, 8),), torch.tensor([20, 21])), range(12), range(40)) is None
