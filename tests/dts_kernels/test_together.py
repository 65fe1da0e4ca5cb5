"""Components and samples in one call: the bits of the ops one after the other, and None for what those must see."""

import copy
import pickle

import pytest
import torch
from torch.nn import functional

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
)
from dts_kernels.cpu import native
from dts_kernels.ops import Together
from dts_kernels.ops import together as together_ops
from dts_kernels.samples import groups_of

pytestmark = pytest.mark.skipif(not native.variants(), reason="needs a C compiler")
SIZES = [(37, 50, 11), (1, 1, 1), (64, 96, 40), (130, 7, 3)]
ROUTINGS = [[2], [None], [7], [{0: 0.5, 2: -0.7}], [0, 2, None, {0: 1.5}, 9, 2]]


def codes(rows, width, seed):
    return pack(torch.randint(4, (rows, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)))


def components(m, n, rank, tasks=(0, 2)):
    bank = Bank(n, m)
    for slot in tasks:
        bank.add(slot, PackedFactors(codes(m, rank, slot), codes(n, rank, slot + 9), torch.rand(rank) + 0.1))
    return bank


def samples(m, n, transposed=False, tasks=(0, 2)):
    bank = SampleBank(n, m, transposed=transposed)
    for slot in tasks:
        shape, stride = bank.shape, 3 + slot
        bank.add(slot, (Samples(codes(shape[0], groups_of(shape[1], stride), slot), 0.3, stride, 77 + slot, shape),))
    return bank


def one_by_one(together, x, weight, bias, routing, adds):
    """What `Together.linear` stands for, in the order of its sums: in float32 the base's product comes last."""
    components, samples = together.components, together.samples
    if x.dtype is torch.float32 and samples is not None:
        y = torch.zeros(*x.shape[:-1], weight.shape[0]) + (0 if bias is None else bias)
        y = y if components is None else delta_linear(x, components, routing, y, adds)
        y = add_samples(x, y, samples, routing)
        return torch.addmm(y.flatten(0, -2), x.flatten(0, -2), weight.T).view_as(y)
    y = functional.linear(x, weight, bias)
    if components is not None:
        y = linear(x, weight, bias, components, routing, adds)
    return y if samples is None else add_samples(x, y, samples, routing)


def of_the_ops(together):
    """What is counted for it."""
    names = ["linear"] * (together.components is not None) + ["add_samples"] * (together.samples is not None)
    return {(name, "native"): 1 for name in names}


def given(m, n, rows, dtype=torch.float32):
    return torch.randn(rows, 2, n).to(dtype), torch.randn(m, n).to(dtype), torch.randn(m).to(dtype)


@torch.no_grad()
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("which", ["components", "samples", "both", "transposed"])
def test_bits_are_those_of_the_ops(size, which):
    m, n, rank = size
    sampled = None if which == "components" else samples(m, n, which == "transposed")
    both = Together(None if which == "samples" else components(m, n, rank), sampled)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        x, weight, bias = given(m, n, 6, dtype)
        x[1] = torch.nan  # of no other row's concern
        adds = None if which == "samples" else torch.randn(3, m)
        for entries in ROUTINGS:
            routing = Routing.of(entries)
            for own_bias, own_adds in ((bias, adds), (None, None)):
                dispatch.ran.clear()
                got = both.linear(x, weight, own_bias, routing, own_adds)
                assert got is not None and got.dtype == dtype and dict(dispatch.ran) == of_the_ops(both)
                want = one_by_one(both, x, weight, own_bias, routing, own_adds)
                assert torch.equal(got.nan_to_num(7.0), want.nan_to_num(7.0)) and not got[0].isnan().any()


@torch.no_grad()
def test_threads_and_float32_products():
    both = Together(components(900, 1100, 60), samples(900, 1100))
    x, weight, bias = given(900, 1100, 20)
    routing, before = Routing.of([0, 2] * 10), torch.get_num_threads()
    try:
        found = []
        for threads in (1, 3):
            torch.set_num_threads(threads)
            y = both.linear(x, torch.zeros_like(weight), bias, routing, None)  # no product of the library in it
            found.append(y)
        assert torch.equal(*found)
    finally:
        torch.set_num_threads(before)
    with dispatch.exact_products():
        exact = both.linear(x, weight, bias, routing, None)
        assert torch.equal(exact, one_by_one(both, x, weight, bias, routing, None))
    assert not torch.equal(exact, both.linear(x, weight, bias, routing, None))


@torch.no_grad()
def test_what_changes_is_followed():
    """Tasks that come and go, tensors that are exchanged under their names, copies."""
    m, n = 40, 30
    both = Together(components(m, n, 9), samples(m, n))
    x, weight, bias = given(m, n, 3)
    routing = Routing.of([2])
    same = lambda t: torch.equal(  # noqa: E731
        t.linear(x, weight, bias, routing, None), one_by_one(t, x, weight, bias, routing, None)
    )
    first = both.linear(x, weight, bias, routing, None)
    for copied in (copy.deepcopy(both), pickle.loads(pickle.dumps(both))):
        assert torch.equal(copied.linear(x, weight, bias, routing, None), first)
    x.mul_(2)  # the same tensor, other numbers
    assert same(both) and not torch.equal(both.linear(x, weight, bias, routing, None), first)
    weight.add_(1)
    assert same(both)
    both.components.add(2, components(m, n, 5, (1,)).factors(1))
    assert same(both)
    both.samples.remove(2)
    assert same(both)
    routing.slots.data = torch.tensor([[0]], dtype=torch.int32)
    assert same(both)
    for slot in range(3, 14):  # more tasks than tables are made for at once
        both.components.add(slot, both.components.factors(0))
        both.samples.add(slot, both.samples.samples(0))
    assert same(both)
    for slot in range(14):
        both.components.remove(slot), both.samples.remove(slot)
    assert torch.equal(both.linear(x, weight, bias, routing, None), functional.linear(x, weight, bias))


def test_what_the_ops_must_see_is_left_to_them():
    m, n = 24, 20
    both, routing = Together(components(m, n, 4), samples(m, n)), Routing.of([0])
    x, weight, bias = given(m, n, 2)
    assert both.linear(x, weight, bias, routing, None) is None  # gradients might be wanted
    with torch.no_grad():
        assert both.linear(x, weight, bias, routing, None) is not None
        negative = torch._neg_view(x)
        wide = x.double(), weight.double(), bias.double()
        for a, w, b in (
            (x.transpose(0, 1), weight, bias),
            (negative, weight, bias),
            wide,
            (x[..., 1:].contiguous(), weight, bias),
            (x, weight[:, 1:], bias),
            (x, weight.half(), bias),
            (x, weight, bias[1:]),
            (x, weight, torch._neg_view(bias)),
            (x, weight, bias[:1].expand(m)),
            (x.to_sparse(), weight, bias),
            (x.to("meta"), weight.to("meta"), bias.to("meta")),
            (x[:0], weight, bias),
        ):
            assert both.linear(a, w, b, routing, None) is None, (a.shape, a.dtype, w.shape, b.shape)
        assert both.linear(x, weight, bias, Routing.of([0, 1, 2]), None) is None  # four rows are no multiple of three
        assert both.linear(x, weight, bias, routing, torch.randn(3, m + 1)) is None
        with torch.autocast("cpu", torch.bfloat16):
            assert both.linear(x, weight, bias, routing, None) is None
        assert Together(None, both.samples).linear(x, weight, bias, routing, torch.randn(3, m)) is None
    assert not Together.suits(Bank(n, m, layout="planar"), None)
    assert not Together.suits(None, SampleBank(n, m, arena=True))


@torch.no_grad()
def test_a_bias_that_lies_otherwise():
    """C reads the bias of the op, too: signs that are pending, and numbers that are not beside each other."""
    m, n = 24, 20
    bank, routing = components(m, n, 4), Routing.of([0])
    x, weight, bias = given(m, n, 5)
    for other in (torch._neg_view(bias), torch.stack([bias, bias], 1)[:, 1], bias[:1].expand(m)):
        plain = torch.empty(m).copy_(other)
        assert torch.equal(linear(x, weight, other, bank, routing), linear(x, weight, plain, bank, routing))
        base = linear(x, weight, other, bank, Routing.of([None]))
        assert torch.equal(base, functional.linear(x, weight, other))


@pytest.mark.parametrize("default", [torch.float64, torch.bfloat16], ids=str)
def test_a_copy_of_a_weight_is_float32_on_the_cpu_whatever_is_the_default(default):
    """Memory that C writes float32 numbers into: in bfloat16 it would be half as large."""
    m, n = 64, 96
    together, routing = Together(components(m, n, 9), None), Routing.of([2])
    weight, gamma = torch.randn(m, n), torch.tensor([0.0, 0.0, 1.0])
    wanted = together.whole(weight, routing, gamma).clone()
    together_ops._kept.memory = None
    torch.set_default_dtype(default)
    try:
        with torch.device("meta"):
            made = together.whole(weight, routing, gamma)
    finally:
        torch.set_default_dtype(torch.float32)
    assert made.dtype == torch.float32 and made.untyped_storage().nbytes() >= 4 * m * n and torch.equal(made, wanted)
