"""Products with sampled elements."""

from collections import Counter

import pytest
import torch

import dts_kernels as kernels
from dts_kernels import dispatch
from dts_kernels.gpu import sample_matrices, sample_products
from dts_kernels.paths import PATHS
from dts_kernels.samples import dense as dense_samples
from tests.dts_kernels.gpu.interpreted.common import (
    DIRECT,
    EIGHT,
    FOUR,
    LAID,
    SAMPLED_TOLERANCE,
    SPLIT_DIRECT,
    TWO,
    error,
    sample_bank,
    sampled,
)

SAMPLED = {
    "one": [0],
    "several samples": [2],
    "none": [None],
    "unknown": [9],
    "mixture": [{0: 0.5, 2: -1.5}],
    "mixed batch": [2, None, 0, 3, 5, {0: 0.3, 3: 2.0}],
}


@pytest.mark.parametrize("entries", SAMPLED.values(), ids=SAMPLED)
@pytest.mark.parametrize("path, each", [("triton", 1), ("triton", 3), ("triton", 11), ("dense", 3)])
def test_sampled_products(entries, each, path, sampled_dtype):
    dtype = sampled_dtype
    torch.manual_seed(0)
    made, routing = sample_bank(), kernels.Routing.of(entries)
    x, y = torch.randn(len(entries) * each, 50).to(dtype), torch.randn(len(entries) * each, 37).to(dtype)
    wanted = PATHS["add_samples"]["reference"](x.double(), y.double(), made.operands(routing), False)
    out = PATHS["add_samples"][path](x, y, made.operands(routing), False)
    assert out.shape == y.shape and out.dtype == dtype and error(out, wanted) < SAMPLED_TOLERANCE[dtype]


@pytest.mark.parametrize("shape", [(1, 1), (1, 50), (37, 1), (5, 3), (33, 129)], ids=str)
@pytest.mark.parametrize("path", ["triton", "dense"])
def test_sampled_products_of_odd_shapes(shape, path):
    torch.manual_seed(0)
    made, routing = sample_bank(shape), kernels.Routing.of([2, {0: 0.5, 3: 1.0}])
    x, y = torch.randn(6, shape[1]), torch.randn(6, shape[0])
    wanted = PATHS["add_samples"]["reference"](x.double(), y.double(), made.operands(routing), False)
    out = PATHS["add_samples"][path](x, y, made.operands(routing), False)
    assert error(out, wanted) < 3e-6


LAUNCHES = [
    *((6, shape) for shape in (DIRECT, LAID, FOUR, EIGHT)),
    *((7, shape) for shape in (DIRECT, LAID, EIGHT)),
    *((12, shape) for shape in (DIRECT, SPLIT_DIRECT, LAID, TWO, FOUR, EIGHT)),
    *((33, shape) for shape in (SPLIT_DIRECT, LAID, FOUR)),
    *((513, shape) for shape in (DIRECT, LAID, EIGHT)),
    (2, TWO),
    (8, LAID),
    (16, LAID),
    (4095, LAID),
]


@pytest.mark.parametrize("stride,shape", LAUNCHES, ids=str)
def test_sampled_products_of_every_shape_of_launch_and_stride(stride, shape):
    """Laid out or not, lanes and parts, blocks smaller and larger than a run of rows and than the matrix."""
    torch.manual_seed(stride)
    m, n, per_entry = 37, min(101, 16 * stride + 5), 5 if shape.block_t > 1 else 1
    made, routing = kernels.SampleBank(n, m, arena=True), kernels.Routing.of([0, 1])
    for slot in (0, 1):
        codes = kernels.pack(torch.randint(4, (m, -(-n // stride)), dtype=torch.uint8))
        made.add(slot, (kernels.Samples(codes, 0.5, stride, 77 * stride + slot, (m, n)),))
    x, y = torch.randn(2 * per_entry, n).half(), torch.randn(2 * per_entry, m).half()
    wanted = PATHS["add_samples"]["reference"](x.double(), y.double(), made.operands(routing), False)
    out = sample_products.add_samples(x, y, made.operands(routing), False, shape)
    assert error(out, wanted) < 1e-3


THINNED = [(DIRECT, 4, (3, 8)), (SPLIT_DIRECT, 1, (1, 16)), (LAID, 9, (3, 4)), (TWO, 6, (1, 2)), (EIGHT, 12, (1, 64))]


@pytest.mark.parametrize("shape, stride, share", THINNED, ids=str)
def test_thinned_samples_in_every_shape_of_launch(stride, share, shape):
    """Beside a sample that is not: only its x is laid out."""
    torch.manual_seed(stride)
    m, n, per_entry = 21, 90, 3 if shape.block_t > 1 else 1
    made, routing = kernels.SampleBank(n, m, arena=True), kernels.Routing.of([0, 1, 2])
    thinned, whole = sampled((m, n), stride, share, seed=3), sampled((m, n), 9, seed=4)
    for slot, own in enumerate(((thinned,), (whole, thinned), (whole,))):
        made.add(slot, own)
    x, y = torch.randn(3 * per_entry, n).half(), torch.randn(3 * per_entry, m).half()
    wanted = PATHS["add_samples"]["reference"](x.double(), y.double(), made.operands(routing), False)
    out = sample_products.add_samples(x, y, made.operands(routing), False, shape)
    assert error(out, wanted) < 1e-3


def test_rows_of_thinned_samples():
    made, shape = kernels.SampleBank(50, 37, arena=True), (37, 50)
    made.add(0, (sampled(shape, 3, (3, 4)), sampled(shape, 1, (1, 8)), sampled(shape, 6)))
    ids, y, operands = torch.arange(-1, 37), torch.zeros(38, 50), made.operands(kernels.Routing.of([0]))
    wanted = PATHS["add_sampled_rows"]["reference"](ids, y.double(), operands, 37)
    assert error(PATHS["add_sampled_rows"]["triton"](ids, y, operands, 37), wanted) < 1e-6


def test_groups_that_are_not_there_and_infinite_numbers_stay_out_of_other_rows():
    """The last quad of groups has columns beyond x; an infinite number must not get into rows that do not meet it."""
    made, routing = sample_bank((37, 50)), kernels.Routing.of([0])
    x, y = torch.ones(1, 50), torch.zeros(1, 37)
    x[0, 3] = float("inf")
    hit = dense_samples(made.samples(0)[0])[:, 3] != 0
    for laid in (False, True):
        out = sample_products.add_samples(x, y, made.operands(routing), False, sample_products.Shape(1, 2, 2, laid))
        assert torch.equal(out[0].isfinite(), ~hit) and hit.any()


def test_rows_of_samples_for_an_embedding():
    torch.manual_seed(0)
    made, routing = sample_bank(), kernels.Routing.of([2, {0: 0.5, 3: -1.0}, None])
    ids, y = torch.tensor([[0, 36, -1], [7, 8, 20], [5, 6, 7]]), torch.randn(3, 3, 50)
    dispatch.ran.clear()
    out = kernels.add_sampled_rows(ids, y, made, routing)
    assert dispatch.ran == Counter({("add_sampled_rows", "triton"): 1})
    wanted = PATHS["add_sampled_rows"]["reference"](ids, y.double(), made.operands(routing), 37)
    assert error(out, wanted) < 1e-6 and torch.equal(out[2], y[2]) and torch.equal(out[0, 2], y[0, 2])
    with pytest.raises(IndexError, match="37"):
        kernels.add_sampled_rows(torch.tensor([37]), y[0, :1], made, kernels.Routing.of([0]))


@pytest.mark.parametrize("stride", [1, 3, 7, 12, 100])
@pytest.mark.parametrize("transposed", [False, True])
def test_the_dense_matrix_of_samples_is_exact(stride, transposed):
    of_samples_is_exact(stride, transposed, (1, 1))


@pytest.mark.parametrize("stride, share", [(1, (3, 4)), (7, (1, 16)), (12, (3, 8))])
def test_the_dense_matrix_of_thinned_samples_is_exact(stride, share):
    of_samples_is_exact(stride, False, share)


def of_samples_is_exact(stride, transposed, share):
    shape = (33, 130)
    made = kernels.SampleBank(*(shape if transposed else shape[::-1]), transposed=transposed, arena=True)
    made.add(0, (sampled(shape, stride, share, size=0.3 / stride, seed=99),))
    matrix, factor = sample_matrices.dense(made.operands(kernels.Routing.of([0])), 0, shape, torch.float16)
    assert torch.equal(matrix.float() * factor, dense_samples(made.samples(0)[0]))


@pytest.mark.parametrize("path", ["triton", "dense"])
def test_scales_that_fp16_cannot_hold(path):
    torch.manual_seed(0)
    made, routing = sample_bank(size=1e-8), kernels.Routing.of([{2: 0.37, 0: -1e-3}])
    x, y = torch.randn(4, 50).half() * 1e4, torch.zeros(4, 37).half()
    wanted = PATHS["add_samples"]["reference"](x.double(), y.double(), made.operands(routing), False)
    out = PATHS["add_samples"][path](x, y, made.operands(routing), False)
    assert wanted.abs().max() > 1e-3 and error(out, wanted) < 1e-3


def test_transposed_sampled_products_take_the_dense_path(sampled_dtype):
    dtype = sampled_dtype
    torch.manual_seed(0)
    made = sample_bank(transposed=True)
    x, y = torch.randn(2, 3, 37).to(dtype), torch.randn(2, 3, 50).to(dtype)
    routing = kernels.Routing.of([0, {2: 0.5}])
    dispatch.ran.clear()
    out = kernels.add_samples(x, y, made, routing)
    assert dispatch.ran["add_samples", "dense"] == 1
    wanted = y.double()
    wanted[0] += x[0].double() @ dense_samples(made.samples(0)[0], torch.float64)
    wanted[1] += 0.5 * x[1].double() @ sum(dense_samples(s, torch.float64) for s in made.samples(2))
    assert error(out, wanted) < SAMPLED_TOLERANCE[dtype]


def test_gradients_of_sampled_products():
    torch.manual_seed(0)
    made, routing = sample_bank(), kernels.Routing.of([0, 2])
    x, y = torch.randn(4, 50, requires_grad=True), torch.randn(4, 37, requires_grad=True)
    out = kernels.add_samples(x, y, made, routing)
    grad = torch.randn_like(out)
    out.backward(grad)
    matrices = [sum(dense_samples(s, torch.float64) for s in made.samples(slot)) for slot in (0, 2)]
    wanted = torch.cat([g.double() @ m for g, m in zip(grad.split(2), matrices)])
    assert error(x.grad, wanted) < 3e-6 and torch.equal(y.grad, grad)
