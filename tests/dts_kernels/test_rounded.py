"""Vectors in few bits: their numbers, and products that add them, have the bits of the same vectors in float32."""

import copy
import pickle

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from dts_kernels import Bank, PackedFactors, Routing, add_rows, linear, pack, rounded
from dts_kernels.cpu import native, native_vectors
from dts_kernels.ops import Together, task_rows, vectors_here
from dts_kernels.rounded import ALL, BITS, SHARED, RoundedVector, RoundedVectors

pytestmark = pytest.mark.skipif(not native.variants(), reason="needs a C compiler")


def drawn(n: int, bits: int, seed: int = 0) -> tuple[RoundedVector, torch.Tensor]:
    """A vector, and its numbers by the definition: bit j of number i is bit ``bits`` i + j of the bytes."""
    draw = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 256, (-(-bits * n // 8),), generator=draw, dtype=torch.uint8)
    scales = (torch.rand(-(-n // SHARED), generator=draw) * 1e-3).bfloat16()
    stream = (codes[:, None].int() >> torch.arange(8) & 1).flatten()[: n * bits].view(n, bits)
    whole = (stream * torch.tensor([*[2**j for j in range(bits - 1)], -(2 ** (bits - 1))])).sum(1)
    numbers = whole.float() * scales.float().repeat_interleave(SHARED)[:n]
    return RoundedVector.of(codes, scales, bits, n), numbers


def bank(n: int) -> tuple[RoundedVectors, torch.Tensor]:
    """Slots 0, 2, 3 and 4 in 3, 4, 8 bits and in float32, and the stack that they stand for."""
    vectors, stack = RoundedVectors.none(n), torch.zeros(5, n)
    for slot, bits in zip((0, 2, 3), BITS):
        one, stack[slot] = drawn(n, bits, slot)
        vectors = vectors.changed(slot, one)
    stack[4] = torch.randn(n)
    return vectors.changed(4, RoundedVector.floats(stack[4].clone())), stack


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("n", [1, 7, 16, 63, 64, 65, 200])
def test_numbers_are_codes_times_scales(n, bits):
    one, numbers = drawn(n, bits)
    assert torch.equal(one.values(), numbers)
    assert torch.equal(pickle.loads(pickle.dumps(one)).values(), numbers)


def test_they_come_and_go_and_are_copied():
    vectors, stack = bank(70)
    for made in (vectors, copy.deepcopy(vectors), pickle.loads(pickle.dumps(vectors))):
        assert torch.equal(made.dense(), stack) and made.shape == stack.shape
        index = torch.tensor([[4, 1], [0, 3]])
        assert torch.equal(made[index], stack[index])
    less = vectors.changed(4, None).changed(3, None)
    assert less.shape == (3, 70) and torch.equal(less.dense(), stack[:3]) and torch.equal(vectors.dense(), stack)
    assert sum(t.nbytes for t in less.held()) == -(-70 * 3 // 8) + 35 + 2 * 2 * 2
    with pytest.raises(ValueError, match="71 numbers among those of 70"):
        vectors.changed(1, drawn(71, 3)[0])
    with pytest.raises(ValueError, match="are not those of 71 numbers in 3 bits"):
        RoundedVector.of(*drawn(70, 4)[0].tensors(), 3, 71)


ENTRIES = [[0], [1], [9], [{0: 0.5, 3: -0.7, 4: 2.0}], [0, 2, 3, 4, None, {2: 2.5, 1: 1.0}]]


@torch.no_grad()
@pytest.mark.parametrize("entries", ENTRIES, ids=str)
def test_sums_are_those_of_a_stack(entries):
    (vectors, stack), routing = bank(70), Routing.of(entries)
    base, y = torch.randn(70), torch.randn(len(entries) * 2, 70)
    assert torch.equal(vectors_here([(base, vectors)], routing)[0], vectors_here([(base, stack)], routing)[0])
    both = vectors_here([(base, stack), (base, vectors)], routing)
    assert torch.equal(both[0], both[1])
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        assert torch.equal(task_rows(vectors, routing, dtype), task_rows(stack, routing, dtype))
        given = routing, dtype, base.to(dtype)
        assert torch.equal(task_rows(vectors, *given), task_rows(stack, *given))
        assert torch.equal(add_rows(y.to(dtype), vectors, routing), add_rows(y.to(dtype), stack, routing))


@pytest.mark.parametrize("grad", [False, True], ids=["no grad", "grad"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("each", [1, 40])  # rows an entry: in the sweep, and in blocks
@pytest.mark.parametrize("entries", ENTRIES, ids=str)
def test_products_add_what_a_stack_adds(entries, each, dtype, grad):
    (vectors, stack), routing = bank(70), Routing.of(entries)
    draw = lambda rows: pack(torch.randint(0, 4, (rows, 9), dtype=torch.uint8))  # noqa: E731
    factors, banked = Bank(33, 70), (0, 1, 2)
    for slot in banked:
        factors.add(slot, PackedFactors(draw(70), draw(33), torch.rand(9)))
    x, weight, bias = (
        t.to(dtype) for t in (torch.randn(len(entries) * each, 33), torch.randn(70, 33), torch.randn(70))
    )
    weight.requires_grad_(grad)
    with torch.set_grad_enabled(grad):
        want = linear(x, weight, bias, factors, routing, stack)
        assert torch.equal(linear(x, weight, bias, factors, routing, vectors), want)
        if not grad:
            together = Together(factors, None)
            made = together.linear(x, weight, bias, routing, vectors)
            assert made is not None and torch.equal(made, together.linear(x, weight, bias, routing, stack))


def test_sizes_that_do_not_fit_are_refused_in_c():
    vectors, routing = bank(70)[0], Routing.of([0])
    with pytest.raises(ValueError, match="add_vectors"):
        native_vectors.add_vectors([(torch.randn(71), vectors)], routing.slots, routing.weights)


@pytest.mark.parametrize("default", [torch.float64, torch.bfloat16], ids=str)
def test_they_are_float32_on_the_cpu_whatever_is_the_default(default):
    vectors, stack = bank(70)
    base, routing = torch.randn(70), Routing.of([{0: 0.5, 3: -0.7}, {4: 1.0, 2: 2.0}])
    wanted = vectors_here([(base, stack)], routing)[0]
    torch.set_default_dtype(default)
    try:
        with torch.device("meta"):
            made = vectors.dense(), vectors[routing.slots], vectors.of(0).values(), vectors.used(routing.slots)
            sums = vectors_here([(base, vectors)], routing)[0]
    finally:
        torch.set_default_dtype(torch.float32)
    for found, right in zip(made, (stack, stack[routing.slots], stack[0], stack)):
        assert found.dtype == torch.float32 and torch.equal(found, right)
    assert torch.equal(sums, wanted)


def test_of_many_only_those_that_are_used_are_made():
    vectors, stack = bank(70)
    for slot in range(5, 3 * ALL):
        vectors = vectors.changed(slot, drawn(70, 4, slot)[0])
    assert vectors.shape[0] > ALL
    made = vectors.used(torch.tensor([[4, 0], [99, -1], [0, 3]], dtype=torch.int32))
    for slot in range(3 * ALL):
        assert torch.equal(made[slot], stack[slot] if slot in (0, 3, 4) else torch.zeros(70))


def test_a_pickle_has_what_is_theirs_alone():
    memory = torch.zeros(1 << 20, dtype=torch.uint8)
    one = RoundedVector.of(memory[77:107], torch.ones(2, dtype=torch.bfloat16), 3, 80)
    assert len(pickle.dumps(RoundedVectors.none(80).changed(0, one))) < 1 << 13


def test_without_c_they_are_what_they_are_by_definition(monkeypatch):
    vectors, stack = bank(70)
    monkeypatch.setattr(rounded, "readable", lambda: False)
    monkeypatch.setattr(rounded, "loaded", None)
    index = torch.tensor([[3], [1]])
    assert torch.equal(vectors.dense(), stack) and torch.equal(vectors[index], stack[index])
    assert torch.equal(vectors.of(2).values(), stack[2])


@pytest.mark.filterwarnings("ignore")
def test_who_records_or_differentiates_sees_constants():
    (vectors, stack), routing = bank(70), Routing.of([{0: 0.5, 3: -0.7}, 4])
    x = torch.randn(2, 70)
    add = lambda adds: lambda y: add_rows(y, adds, routing)  # noqa: E731
    assert torch.equal(torch.func.jvp(add(vectors), (x,), (x,))[0], add(stack)(x))
    assert torch.equal(torch.func.vmap(add(vectors))(x[None])[0], add(stack)(x))
    other = torch.randn(2, 70)
    traced = torch.jit.trace(add(vectors), (x,), check_trace=False)
    assert torch.equal(traced(other), add(stack)(other))
    assert torch.equal(make_fx(add(vectors))(x)(other), add(stack)(other))
