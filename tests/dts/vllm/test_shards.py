"""Rows and columns of compressed matrices are those of the whole matrix, wherever they are cut."""

import pytest
import torch

from dts.adapter import Entry
from dts.codec import Factors
from dts.nn.deltas import MatrixDelta
from dts.vllm.packed.batch import Rows
from dts.vllm.packed.layers import CutSample, Span
from dts.vllm.packed.shards import cut_sample, shard
from dts_kernels import PackedFactors, Samples, pack
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
def test_a_span_is_the_dense_matrix(kept, rows, columns):
    """Components and a sample of one task, a second task beside it, rows of the base between."""
    m, n = (24 if kept[0] is None else len(kept[0])), (40 if kept[1] is None else len(kept[1]))
    whole = [factors((24, 40), (components(m, n, 6), sample(m, n, 7)), *kept) for _ in range(2)]
    height, width = rows[1] - rows[0], columns[1] - columns[0]
    span = Span(MatrixDelta((height, width)))
    for slot, one in enumerate(whole):
        span.add(slot, Entry("w", "w", one.shape, "factors", factors=one), range(*rows), range(*columns))
    parts = [one.reconstruct()[rows[0] : rows[1], columns[0] : columns[1]] for one in whole]
    slots = torch.tensor([0, -1, 1, 1, 0], dtype=torch.int32)
    x, y = torch.randn(5, width, generator=DRAW), torch.randn(5, height, generator=DRAW)
    expected = torch.stack([y[i] + (x[i] @ parts[s].T if s >= 0 else 0) for i, s in enumerate(slots.tolist())])
    with exact_products():
        torch.testing.assert_close(span.product(x, y.clone(), Rows(slots)), expected, rtol=1e-5, atol=1e-4)
    ids, table = torch.tensor([0, 1, height - 1, 1, height // 2]), torch.randn(5, width, generator=DRAW)
    expected = torch.stack([table[i] + (parts[s][ids[i]] if s >= 0 else 0) for i, s in enumerate(slots.tolist())])
    torch.testing.assert_close(span.look_up(ids, table.clone(), Rows(slots)), expected, rtol=1e-5, atol=1e-4)
    span.remove(0)
    alone = span.product(x, y.clone(), Rows(torch.zeros(5, dtype=torch.int32)))
    assert torch.equal(alone, y)


def test_what_is_cut_away_leaves_memory():
    own = shard(factors((24, 40), (components(24, 40, 8), sample(24, 40, 4))), range(12), range(40))
    assert own is not None
    tensors = [own.factors.packed.u, own.factors.samples[0].codes]
    assert [t.untyped_storage().nbytes() for t in tensors] == [t.nbytes for t in tensors] == [24, 36]
    assert shard(factors((24, 40), (components(2, 40, 8),), torch.tensor([20, 21])), range(12), range(40)) is None


def test_a_sample_cut_within_a_block_looks_rows_up():
    whole = sample(24, 40, 7)
    one = CutSample(cut_sample(whole, range(10, 24), range(20, 40)), (14, 20), None, None)
    assert torch.equal(one.rows(torch.tensor([0, 13]), torch.float32), dense(whole)[[10, 23], 20:])
