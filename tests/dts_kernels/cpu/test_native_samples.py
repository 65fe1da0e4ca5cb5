"""Sampled elements in every compiled variant that this machine can run, against float64."""

import copy
from functools import cache

import pytest
import torch

from dts_kernels import Routing, SampleBank, Samples, add_sampled_rows, add_samples, dispatch, pack
from dts_kernels.cpu import native, native_samples
from dts_kernels.dispatch import Problem, choose
from dts_kernels.layout import packed_width
from dts_kernels.samples import dense, elements_of, groups_of

VARIANTS = native.variants() or [pytest.param("", marks=pytest.mark.skip(reason="needs a C compiler"))]
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 4e-3, torch.float16: 5e-4}  # one rounding, of the whole result
DIGITS = TOLERANCE | {torch.float32: 5e-5}  # x in 16 bits, of samples with strides up to 16 that are not thinned
# (m, n), strides of a task's samples; a text: of a thinned one, with its share
SHAPES = [
    ((37, 50), (7,)),
    ((64, 96), (12, 5)),
    ((97, 531), (4,)),
    ((50, 700), (2, 8)),
    ((5, 33), (40, 1)),
    ((130, 1037), (13,)),
    ((33, 20), (64, 16)),
    ((300, 70), (1,)),
    ((1, 1), (3,)),
    ((600, 41), (11, 24)),
    ((37, 50), ("7 3/4",)),
    ((130, 1037), ("2 3/8", 5)),
    ((70, 300), ("1 1/64", "30 1/2")),
]


def samples(shape, stride, seed):
    stride, share = stride.split() if isinstance(stride, str) else (stride, "1/1")
    stride, share = int(stride), tuple(map(int, share.split("/")))
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(4, (shape[0], elements_of(shape[1], stride, share)), dtype=torch.uint8, generator=generator)
    return Samples(pack(codes), 0.1 + 0.05 * seed, stride, seed * 0x1234567 % (1 << 32), shape, share)


def bank_of(shape, strides, transposed=False):
    """Slots 0 and 2 with samples of all strides, 3 without any."""
    bank = SampleBank(*(shape if transposed else shape[::-1]), transposed=transposed)
    for slot in (0, 2):
        bank.add(slot, tuple(samples(shape, stride, 1 + i + slot) for i, stride in enumerate(strides)))
    bank.add(3, ())
    return bank


def tolerance(dtype, strides, transposed, exact):
    digits = not exact and not transposed and any(isinstance(s, int) and s <= 16 for s in strides)
    return (DIGITS if digits else TOLERANCE)[dtype]


def run(bank, x, y, routing, variant, threads=1, exact=False):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        array = native_samples.SampleArray(*bank.arguments)
        return native_samples.add_samples(x, y, array, routing.slots, routing.weights, bank.transposed, variant, exact)
    finally:
        torch.set_num_threads(before)


def expected(bank, x, y, routing):
    out, each = y.double(), x.shape[0] // max(1, routing.slots.shape[0])
    slots, gammas = (own.repeat_interleave(each, 0) for own in (routing.slots, routing.weights.double()))
    for slot in bank.slots:
        own = slots == slot
        rows, gamma = own.any(1), (own * gammas).sum(1, keepdim=True)
        if rows.any() and bank.samples(slot):
            matrix = sum(dense(s, torch.float64) for s in bank.samples(slot))
            out[rows] += gamma[rows] * (x[rows].double() @ (matrix if bank.transposed else matrix.T))
    return out


def error(got, want):
    return ((got.double() - want).norm() / want.norm()).item()


def mixed(rows):
    return Routing.of([(0, 2, None, {0: 0.5, 2: -0.7}, 9, 3, 0)[i % 7] for i in range(rows)])


@cache
def cases(shape, strides, transposed):
    """(bank, what is asked of it and wanted), of all variants: a list of (x, y, routing, float64)."""
    bank, asked = bank_of(shape, strides, transposed), []
    for rows in (1, 2, 5, 17, 70):
        seeded = torch.Generator().manual_seed(rows)
        for dtype in TOLERANCE if rows in (2, 17) else (torch.float32,):
            x = torch.randn(rows, bank.in_features, generator=seeded).to(dtype)
            y = torch.randn(rows, bank.out_features, generator=seeded).to(dtype)
            for routing in (Routing.of([2]), Routing.of([{0: 0.3, 2: -2.0}]), mixed(rows)):
                asked.append((x, y, routing, expected(bank, x, y, routing)))
    return bank, asked


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("shape, strides", SHAPES, ids=str)
@pytest.mark.parametrize("transposed", [False, True])
def test_every_variant(variant, shape, strides, transposed):
    bank, asked = cases(shape, strides, transposed)
    for x, y, routing, want in asked:
        for exact in (False, True):
            got = run(bank, x, y, routing, variant, 1, exact)
            most = tolerance(x.dtype, strides, transposed, exact)
            assert got.dtype == x.dtype and error(got, want) < most, (len(x), x.dtype, exact)


@cache
def large_cases(strides, transposed):
    """The same where there are enough elements that more threads are worth it: rows of one task and of several."""
    bank, asked = bank_of((900, 1100), strides, transposed), []
    for rows, routing in ((300, Routing.of([0])), (77, mixed(77)), (8, Routing.of([0]))):
        x, y = torch.randn(rows, bank.in_features), torch.randn(rows, bank.out_features)
        asked.append((x, y, routing, expected(bank, x, y, routing)))
    return bank, asked


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("strides", [(12, 7, "4 3/4"), (6,)], ids=str)
def test_threads_change_nothing(variant, transposed, strides):
    """More than one sweep."""
    bank, asked = large_cases(strides, transposed)
    for x, y, routing, want in asked:
        for exact in (False, True):
            got = run(bank, x, y, routing, variant, 1, exact)
            assert error(got, want) < tolerance(torch.float32, strides, transposed, exact)
            for threads in (2, 5):
                assert torch.equal(run(bank, x, y, routing, variant, threads, exact), got)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("stride", [3, 4, 8, 16])
def test_a_row_has_its_bits_beside_any_others(variant, stride):
    """Alone, among rows of its task, and where other rows have several samples or none, so that no tile is left out."""
    bank, other = bank_of((150, 300), (stride,)), samples((150, 300), 5, 9)
    bank.add(1, (other, samples((150, 300), 7, 4)))
    x, y = torch.randn(200, 300), torch.randn(200, 150)
    together = run(bank, x, y, Routing.of([0]), variant)
    assert torch.equal(run(bank, x[7:8], y[7:8], Routing.of([0]), variant)[0], together[7])
    beside = Routing.of([0 if i % 2 else (None, 1, 2)[i // 2 % 3] for i in range(200)])
    assert torch.equal(run(bank, x, y, beside, variant)[1::2], together[1::2])


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("stride", [4, 8, 16])
@pytest.mark.parametrize("code", [1, 3])
def test_the_largest_digits_and_codes_do_not_overflow(variant, stride, code):
    """Sums of 16 and 32 bits at their largest: every element +4 or -4, every number of x the row's largest."""
    shape, rows = (40, 16368), 9
    codes = torch.full((shape[0], elements_of(shape[1], stride)), code, dtype=torch.uint8)
    bank = SampleBank(*shape[::-1])
    bank.add(0, (Samples(pack(codes), 1.0, stride, 77, shape),))
    x = torch.tensor([1.0, -1.0, 0.7]).repeat(3)[:, None].expand(rows, shape[1]).contiguous()
    got = run(bank, x, torch.zeros(rows, shape[0]), Routing.of([0]), variant)
    assert torch.allclose(got, x[:, :1] * (4 if code == 1 else -4) * (shape[1] // stride), rtol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("transposed", [False, True])
def test_what_is_not_there_adds_nothing(variant, transposed):
    bank = bank_of((50, 45), (12,), transposed)
    x, y = torch.randn(6, bank.in_features), torch.randn(6, bank.out_features)
    for routing in (Routing.of([None]), Routing.of([1, 3]), Routing.of([7, -5, 4])):
        assert torch.equal(run(bank, x, y, routing, variant), y)
    empty = SampleBank(bank.in_features, bank.out_features, transposed=transposed)
    assert torch.equal(run(empty, x, y, Routing.of([0]), variant), y)
    x[2], x[4] = torch.nan, torch.inf  # other rows do not see it
    want, keep = expected(bank, x, y, Routing.of([0])), [0, 1, 3, 5]
    for exact in (False, True):
        got = run(bank, x, y, Routing.of([0]), variant, 1, exact)
        assert error(got[keep], want[keep]) < tolerance(torch.float32, (12,), transposed, exact)
        assert torch.equal(got[[2, 4]].isfinite(), want[[2, 4]].isfinite())


@pytest.mark.parametrize("variant", VARIANTS)
def test_codes_are_read_where_they_lie(variant):
    """Rows of codes with gaps between them, at an odd address."""
    shape, stride = (61, 150), 11
    width = packed_width(groups_of(shape[1], stride))
    whole = torch.randint(256, (shape[0], width + 9), dtype=torch.uint8)
    own = Samples(whole[:, 3 : 3 + width], 0.1, stride, 5, shape)
    bank = SampleBank(shape[1], shape[0])
    bank.add(0, (own,))
    array = native_samples.SampleArray(*bank.arguments)
    assert array.array[0].codes == whole.data_ptr() + 3 and array.array[0].row_bytes == width + 9
    routing, turned = Routing.of([0]), Samples(own.codes.T.contiguous().T, 0.1, stride, 5, shape)
    for stored in (own, turned):
        bank.add(0, (stored,))
        for rows in (1, 40):
            x, y = torch.randn(rows, 300)[:, ::2], torch.randn(61, rows).T
            for exact, most in ((False, DIGITS[torch.float32]), (True, 2e-6)):
                assert error(run(bank, x, y, routing, variant, 1, exact), expected(bank, x, y, routing)) < most


@pytest.mark.skipif(not native.variants(), reason="needs a C compiler")
@pytest.mark.parametrize("transposed", [False, True])
def test_the_op_takes_this_path(transposed):
    bank = bank_of((40, 64), (8, 5), transposed)
    x, y = torch.randn(2, 3, bank.in_features), torch.randn(2, 3, bank.out_features)
    routing = Routing.of([0, {0: 0.5, 2: 1.5}])
    want = expected(bank, x.flatten(0, 1), y.flatten(0, 1), routing).view(y.shape)
    before = dispatch.ran["add_samples", "native"]
    with dispatch.exact_products():
        assert error(add_samples(x, y, bank, routing), want) < 2e-6
    assert error(add_samples(x, y, bank, routing), want) < tolerance(torch.float32, (8, 5), transposed, False)
    assert dispatch.ran["add_samples", "native"] == before + 2
    x.requires_grad_()
    add_samples(x, y, bank, routing).sum().backward()  # through the dispatcher, and back with the matrix turned
    assert dispatch.ran["add_samples", "native"] == before + 4
    back = SampleBank(bank.out_features, bank.in_features, transposed=not transposed)
    for slot in (0, 2):
        back.add(slot, bank.samples(slot))
    ones = torch.ones(6, bank.out_features)
    assert error(x.grad.view(6, -1), expected(back, ones, torch.zeros(6, bank.in_features), routing)) < 2e-6
    again = copy.deepcopy(bank)
    again.remove(2)
    torch.testing.assert_close(add_samples(x, y, again, Routing.of([0])), add_samples(x, y, bank, Routing.of([0])))


def test_the_choice():
    some = native.variant() and "native" or "reference"
    for op in ("add_samples", "add_sampled_rows"):
        for dtype in TOLERANCE:
            assert choose(Problem(op, "cpu", str(dtype).removeprefix("torch."), 3)) == some
        for dtype, rows, layout in (("float64", 3, "disk"), ("float32", 0, "disk"), ("float32", 3, "arena")):
            assert choose(Problem(op, "cpu", dtype, rows, layout=layout)) == "reference"


@cache
def with_matrices(shape, strides):
    """(bank, slot -> its float64 matrix)."""
    bank = bank_of(shape, strides)
    return bank, {slot: sum(dense(s, torch.float64) for s in bank.samples(slot)) for slot in (0, 2)}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("shape", "strides"), [*SHAPES, ((9, 1301), (1, "1 3/4", "2 1/64"))])  # of several parts
@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_rows_are_those_of_dense_matrices(shape, strides, dtype, variant):
    (bank, matrix), routing = with_matrices(shape, strides), Routing.of([2, None, {0: 0.5, 2: -1.5}, 3, 7])
    ids = torch.randint(-1, shape[0], (5, 9), generator=torch.Generator().manual_seed(0))
    y = torch.randn(5, 9, shape[1]).to(dtype)
    wanted = y.double()
    for row, mixture in ((0, {2: 1.0}), (2, {0: 0.5, 2: -1.5})):
        for slot, gamma in mixture.items():
            wanted[row] += gamma * torch.where(ids[row, :, None] < 0, 0.0, matrix[slot][ids[row].clamp(min=0)])
    array = native_samples.SampleArray(*bank.arguments)
    got = native_samples.add_sampled_rows(ids, y, array, routing.slots, routing.weights, shape[0], variant)
    assert got.dtype == dtype and error(got, wanted) < TOLERANCE[dtype]


def test_rows_take_the_native_path_and_know_their_limit():
    bank = bank_of((37, 50), (7,))
    dispatch.ran.clear()
    out = add_sampled_rows(torch.tensor([[36, -1]]), torch.zeros(1, 2, 50), bank, Routing.of([0]))
    assert dispatch.ran == {("add_sampled_rows", "native"): 1} and out[0, 0].any() and not out[0, 1].any()
    with pytest.raises(IndexError, match="37"):
        add_sampled_rows(torch.tensor([37]), torch.zeros(1, 50), bank, Routing.of([0]))
