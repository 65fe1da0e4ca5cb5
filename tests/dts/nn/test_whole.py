"""Many rows of one mixture on a CPU: its deltas in a copy of the weight, for the library's product."""

import pytest
import torch

from dts.nn.deltas.packed import Packed
from dts_kernels import PackedFactors, Routing, Samples, dispatch, pack
from dts_kernels.cpu import native, rules
from dts_kernels.parts.kind import base_product
from dts_kernels.samples import groups_of

pytestmark = pytest.mark.skipif(not native.variants(), reason="needs a C compiler")
M, N, ROWS = 70, 90, 300


def codes(*shape):
    return pack(torch.randint(0, 4, shape, dtype=torch.uint8))


def packed(sampled, transposed=False):
    torch.manual_seed(0)
    made = Packed((M, N), transposed=transposed)
    m, n = (N, M) if transposed else (M, N)
    for slot in range(3):
        parts = [PackedFactors(codes(m, 9), codes(n, 9), torch.rand(9) / 50)]
        made.add(slot, parts + [Samples(codes(m, groups_of(n, 4)), 0.05, 4, slot, (m, n))] * sampled)
    return made


def operands():
    torch.manual_seed(1)
    return torch.randn(2, ROWS // 2, N), torch.randn(M, N), torch.randn(M), torch.randn(3, M)


@pytest.mark.parametrize("sampled, transposed", [(False, False), (True, False), (True, True)])
@pytest.mark.parametrize("mixture", [1, {0: 0.5, 2: -1.5}, None], ids=str)
@pytest.mark.parametrize("with_adds", [False, True])
def test_as_few_rows_have_it(sampled, transposed, mixture, with_adds):
    made, (x, weight, bias, adds), routing = packed(sampled, transposed), operands(), Routing.of([mixture])
    adds = adds if with_adds else None
    with torch.inference_mode():
        few = torch.cat([made.linear(part, weight, bias, routing, adds) for part in x.flatten(0, 1).split(100)])
        dispatch.ran.clear()
        many = made.linear(x, weight, bias, routing, adds)
    assert dispatch.ran[("reconstruct", "native")] == 1 and not dispatch.ran[("linear", "native")]
    assert dispatch.ran[("add_dense_samples", "native")] == sampled
    assert many.shape == (2, ROWS // 2, M)
    assert (many.view_as(few) - few).norm() < 2e-4 * few.norm()
    with torch.inference_mode():
        assert mixture is not None or torch.equal(many, base_product(x, weight, bias, routing, adds))


def test_only_where_nothing_else_is_asked_for():
    made, (x, weight, bias, adds) = packed(True), operands()
    one = Routing.of([1])

    def taken(x=x, weight=weight, routing=one):
        dispatch.ran.clear()
        made.linear(x, weight, bias.to(weight.dtype), routing, adds)
        return bool(dispatch.ran[("reconstruct", "native")])

    with torch.no_grad():
        assert taken()
        assert not taken(routing=Routing.of([1, 1]))  # rows might be of several tasks
        assert not taken(x[:, :100])
        assert not taken(x.bfloat16(), weight.bfloat16())  # would round the sum to the weight's 8 bits
        with dispatch.exact_products():
            assert not taken()
    assert not taken(x.clone().requires_grad_())


def test_from_how_many_rows():
    assert rules.whole_from(384, 384, True) == 256 < rules.whole_from(384, 384, False) == 288
    assert rules.whole_from(16, 16, False) == 256
    assert rules.whole_from(4096, 4096, False) == float("inf")  # a copy would weigh beside the model


def test_one_copy_after_the_other_in_the_same_memory():
    made, (x, weight, bias, adds) = packed(True), operands()
    turned = weight.T.contiguous().T  # no rows one behind the other: by the ops
    with torch.inference_mode():
        first = made.linear(x, weight, bias, Routing.of([1]), adds)
        again = first.clone()
        other = made.linear(x, 2 * weight, bias, Routing.of([2]), adds)
        assert torch.equal(first, again) and not torch.equal(first, other)
        torch.testing.assert_close(made.linear(x, turned, bias, Routing.of([1]), adds), first)
