"""A row's answer has the same bits whatever else is in the batch, and whatever its tasks are."""

import random

import pytest
import torch

from dts_kernels import (
    Bank,
    PackedFactors,
    Routing,
    SampleBank,
    Samples,
    add_samples,
    delta_linear,
    dispatch,
    linear,
    pack,
    reference,
)
from dts_kernels.cpu import native, native_samples, rules
from dts_kernels.samples import groups_of

VARIANTS = native.variants() or [pytest.param("", marks=pytest.mark.skip(reason="needs a C compiler"))]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
TASKS = [0, 1, 2, None, 3]


def codes(m, n, seed):
    return pack(torch.randint(4, (m, n), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)))


def bank_of(m, n):
    bank = Bank(n, m)
    for slot in (0, 1, 2):
        bank.add(slot, PackedFactors(codes(m, 21, slot), codes(n, 21, slot + 9), torch.rand(21) + 0.1))
    return bank


def sample_bank(m, n, transposed):
    bank = SampleBank(*((m, n) if transposed else (n, m)), transposed=transposed)
    for slot, strides in enumerate([(8,), (5, 40), (1,)]):
        bank.add(slot, tuple(Samples(codes(m, groups_of(n, s), s), 0.1, s, 7 * s, (m, n)) for s in strides))
    return bank


def batches(rows, own_row, own_task, seed):
    """(routing, place of the row that stays) of batches of one size with other tasks beside the row's."""
    draw = random.Random(seed)
    for kind in range(8):
        tasks = [draw.choice(TASKS) for _ in range(rows)] if kind else [own_task] * rows
        if kind == 7:
            tasks = [None] * rows
        tasks[own_row] = own_task
        yield Routing.of(tasks)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("rows", [1, 3, 8, 40, 70])
def test_sampled_products(variant, dtype, transposed, rows):
    bank = sample_bank(45, 523, transposed)
    array, own = native_samples.SampleArray(*bank.arguments), rows // 2
    x, y = torch.randn(rows, bank.in_features).to(dtype), torch.randn(rows, bank.out_features).to(dtype)
    for task in (0, 1, 2):
        alone = Routing.of([task])
        first = native_samples.add_samples(
            x[own : own + 1], y[own : own + 1], array, alone.slots, alone.weights, transposed, variant
        )[0]
        for routing in batches(rows, own, task, rows):
            others, beside = torch.randn_like(x), torch.randn_like(y)
            others[own], beside[own] = x[own], y[own]
            got = native_samples.add_samples(others, beside, array, routing.slots, routing.weights, transposed, variant)
            assert torch.equal(got[own], first)  # of one row alone too


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("rows", [1, 3, 8, 40, 70])
def test_components(variant, dtype, exact, rows):
    bank, own = bank_of(70, 90), rows // 2
    tasks, adds = native.Tasks(bank.packed, bank.table), torch.randn(4, 70)
    x, y = torch.randn(rows, 90).to(dtype), torch.randn(rows, 70).to(dtype)
    y[own, :3] = -0.0
    for task in (0, 3, None):
        first = None
        for routing in batches(rows, own, task, rows):
            others, beside = torch.randn_like(x), torch.randn_like(y)
            others[own], beside[own] = x[own], y[own]
            got = native.delta_linear(
                others, beside, tasks, routing.slots, routing.weights, 70, False, exact, variant, adds=adds
            )[own]
            first = got if first is None else first
            assert torch.equal(got, first) and torch.equal(got.signbit(), first.signbit())


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64], ids=str)
def test_the_ops(dtype):
    """The base product of all rows at once, the delta and the samples, as layers call them."""
    bank, sampled = bank_of(45, 128), sample_bank(45, 128, False)
    weight, bias = torch.randn(45, 128).to(dtype), torch.randn(45).to(dtype)
    for rows in (2, 8, 33):
        x = torch.randn(rows, 128).to(dtype)
        for task in (0, 1, None):
            first = None
            for routing in batches(rows, rows // 2, task, rows):
                others = torch.randn_like(x)
                others[rows // 2] = x[rows // 2]
                got = add_samples(others, linear(others, weight, bias, bank, routing), sampled, routing)[rows // 2]
                got = got + delta_linear(others, bank, routing)[rows // 2]
                first = got if first is None else first
                assert torch.equal(got, first)


def largest_difference(x, factors, exact):
    """Of the paths of `dts_kernels.delta_linear` for few rows and for many, for one row x: (its bound, |t| |U^T|), each
    float64 [m].

    x, and t = (x V) o sigma, in digits of 16 bits are off by half of 2^-15 of their largest; unpacked for bf16
    products x V, t and t U^T are rounded to bf16, 2^-9 of what they are.  The rest is that of float32.
    """
    u, v = (values.double() for values in reference.factor_values(factors, torch.float32))
    x, sigma = x.double(), factors.sigma.double()
    t, most = (x @ v) * sigma, (x.abs() @ v.abs()) * sigma
    digits = 0 if exact else 2**-15 / 2 * 1.02  # 32512 is a little below 2^15
    off = digits * (x.abs().max() * (v.abs().sum(0) * sigma) @ u.abs().T + t.abs().max() * u.abs().sum(1))
    float32 = 2**-23 * x.numel() * most @ u.abs().T
    return off * 1.02 + float32, t.abs() @ u.abs().T


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.skipif(not native.variants(), reason="needs a C compiler")
def test_a_batch_so_large_that_the_path_changes(dtype, exact):
    bank, eps = bank_of(70, 90), torch.finfo(dtype).eps
    table = rules.UNPACK_ROWS_BFLOAT16 if dtype == torch.bfloat16 else rules.UNPACK_ROWS
    many = rules.UNPACK_ROWS_EXACT if exact else table[native.variant()]
    if many is None:
        pytest.skip("this machine has one path for all numbers of rows")
    x, routing = torch.randn(many, 90).to(dtype), Routing.of([1])
    with dispatch.exact_products(exact):
        dispatch.ran.clear()
        batch = delta_linear(x, bank, routing)
        assert dispatch.ran["delta_linear", "unpack"] == 1
        for row in (0, many // 2, many - 1):
            alone = delta_linear(x[row : row + 1], bank, routing)[0]
            off, size = largest_difference(x[row], bank.factors(1), exact)
            off = off + (3 * 2**-9 * size if dtype == torch.bfloat16 else 0)
            bound = off + eps * (alone.double().abs() + off)  # both answers rounded
            assert ((alone.double() - batch[row].double()).abs() <= bound).all()
