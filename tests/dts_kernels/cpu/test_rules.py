"""The choice of a CPU path is a pure function, and what was chosen is what ran."""

import pytest
import torch

from dts_kernels import Bank, PackedFactors, Routing, delta_linear, dispatch, linear, pack, reconstruct
from dts_kernels.cpu import native, rules
from dts_kernels.dispatch import Problem
from dts_kernels.paths import PATHS


def bank():
    codes = [torch.randint(0, 4, (rows, 9), dtype=torch.uint8) for rows in (30, 50)]
    bank = Bank(50, 30)
    bank.add(0, PackedFactors(pack(codes[0]), pack(codes[1]), torch.rand(9)))
    return bank


@pytest.mark.parametrize("op", ["delta_linear", "linear"])
def test_rows_and_dtypes(op):
    def path(dtype, rows, **more):
        return dispatch.choose(Problem(op, "cpu", dtype, rows, **more))

    assert path("float32", 1, variant="avx512vbmi") == "native"
    assert path("float32", 1, variant="") == "table"
    assert path("float64", 1, variant="avx512vbmi") == "table"
    assert path("float32", 10_000, variant="portable") == "unpack"
    assert path("float32", 10_000, entries=10_000, variant="portable") == "native"
    assert path("float32", 1, exact=True, variant="avx2") == "native_exact"
    assert path("float32", 1000, exact=True, variant="avx512vbmi") == "unpack"
    assert path("float32", 1, places=1000, variant="avx2") == "table"


def test_every_variant_has_a_crossover_and_every_choice_a_path():
    from dts_kernels.cpu.build import VARIANTS

    names = {"portable"}.union(*VARIANTS.values())
    assert set(rules.UNPACK_ROWS) == set(rules.UNPACK_ROWS_BFLOAT16) == names
    for op, known in PATHS.items():
        for variant in ["", *names]:
            for dtype in ("float16", "bfloat16", "float32", "float64"):
                for rows in (0, 1, 100, 5000):
                    for exact in (False, True):
                        problem = Problem(op, "cpu", dtype, rows, exact=exact, variant=variant)
                        assert dispatch.choose(problem) in known


@pytest.mark.skipif(not native.variants(), reason="needs a C compiler")
def test_what_was_chosen_ran():
    layer, x, weight = bank(), torch.randn(3, 50), torch.randn(30, 50)
    dispatch.ran.clear()
    delta_linear(x, layer, Routing.of([0]))
    delta_linear(x.double(), layer, Routing.of([0]))
    with dispatch.exact_products():
        linear(x, weight, None, layer, Routing.of([0]))
    reconstruct(layer, {0: 1.0})
    assert dispatch.ran == {
        ("delta_linear", "native"): 1,
        ("delta_linear", "table"): 1,
        ("linear", "native_exact"): 1,
        ("reconstruct", "native"): 1,
    }


def test_gradients_and_tracing_still_go_through_the_dispatcher():
    from torch.fx.experimental.proxy_tensor import make_fx

    layer, routing = bank(), Routing.of([0])
    x = torch.randn(3, 50, requires_grad=True)
    delta_linear(x, layer, routing).sum().backward()
    dense = reconstruct(layer, {0: 1.0})
    want = dense.sum(0).expand(3, 50)
    assert (x.grad - want).norm() < 3e-4 * want.norm()
    graph = make_fx(lambda x: delta_linear(x, layer, routing))(torch.randn(3, 50))
    assert any("dts.delta_linear" in str(node.target) for node in graph.graph.nodes)


def test_a_bank_that_changed_is_seen():
    layer, x = bank(), torch.randn(2, 50)
    before = delta_linear(x, layer, Routing.of([0]))
    layer.remove(0)
    assert torch.equal(delta_linear(x, layer, Routing.of([0])), torch.zeros(2, 30))
    layer = bank()
    after = delta_linear(x, layer, Routing.of([0]))
    want = x @ reconstruct(layer, {0: 1.0}).T
    assert (after - want).norm() < 3e-4 * want.norm()
    assert not torch.equal(before, after)


@pytest.mark.parametrize("path", ["native", "native_exact", "unpack", "table"])
@pytest.mark.parametrize("shape", [(50,), (3, 50), (2, 3, 50)], ids=str)
def test_results_are_new_memory(path, shape):
    """An op that returns a view would forbid the caller to change it in place where gradients are kept."""
    if path != "table" and not native.variants():
        pytest.skip("needs a C compiler")
    layer, routing, x = bank(), Routing.of([0]), torch.randn(shape)
    weight, bias = torch.randn(30, 50), torch.randn(30)
    operands = layer.operands(routing)
    delta = x @ reconstruct(layer, {0: 1.0}, dtype=torch.float64).float().T
    for b in (None, bias):
        got = PATHS["linear"][path](x, weight, b, operands)
        assert not got._is_view()
        want = torch.nn.functional.linear(x, weight, b) + delta
        assert (got - want).norm() < 1e-4 * want.norm()
    got = PATHS["delta_linear"][path](x, None, operands, False)
    assert not got._is_view() and (got - delta).norm() < 3e-4 * delta.norm()
