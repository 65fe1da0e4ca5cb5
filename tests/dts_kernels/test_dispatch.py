"""The layout of a bank, and how backends take part in the choice of a path."""

import warnings

import pytest
import torch

from dts_kernels import Bank, PackedFactors, Routing, delta_linear, dispatch, pack
from dts_kernels.dispatch import Problem, choose, layout_for
from dts_kernels.ops.run import choice
from dts_kernels.paths import PATHS, register


@pytest.mark.parametrize(
    "device,capability,triton,layout,reason",
    [
        ("cpu", None, False, "disk", None),
        ("cuda", (8, 0), True, "planar", None),
        ("cuda", (12, 0), True, "planar", None),
        ("cuda", (7, 5), True, "disk", "sm_75"),
        ("cuda", (9, 0), False, "disk", "Triton"),
        ("cuda", None, True, "disk", "CUDA"),
    ],
)
def test_layout_of_a_bank(device, capability, triton, layout, reason):
    got, why = layout_for(device, capability, triton)
    assert got == layout and (why is None if reason is None else reason in why)


def test_an_old_gpu_falls_back_with_one_warning(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    dispatch._warn_once.cache_clear()
    with pytest.warns(RuntimeWarning, match="sm_75.*sm_80"):
        assert dispatch.bank_layout(torch.device("cuda")) == "disk"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert dispatch.bank_layout(torch.device("cuda")) == "disk"


def test_a_problem_that_no_backend_takes_is_the_reference():
    for op in PATHS:
        assert "reference" in PATHS[op]
        assert choose(Problem(op, "mps", "float32", 3)) == "reference"


def test_a_further_backend_registers_its_paths_and_what_it_takes(monkeypatch):
    bank, codes, routing = Bank(8, 8), pack(torch.randint(0, 4, (8, 5), dtype=torch.uint8)), Routing.of([0])
    bank.add(0, PackedFactors(codes, codes, torch.rand(5)))
    x = torch.randn(2, 8, dtype=torch.float64)
    before = delta_linear(x, bank, routing)

    def doubled(x, y, operands, transposed):
        return 2 * PATHS["delta_linear"]["reference"](x, y, operands, transposed)

    def takes(problem):
        return "doubled" if problem.op == "delta_linear" and problem.dtype == "float64" else None

    monkeypatch.setattr(dispatch, "_choosers", [])
    dispatch.chooser(takes)
    register("delta_linear", "doubled")(doubled)
    choice.cache_clear()
    try:
        with pytest.raises(ValueError, match="doubled"):
            register("delta_linear", "doubled")(doubled)
        dispatch.ran.clear()
        torch.testing.assert_close(delta_linear(x, bank, routing), 2 * before)
        assert (delta_linear(x.float(), bank, routing) - before).norm() < 1e-5 * before.norm()
        assert dispatch.ran == {("delta_linear", "doubled"): 1, ("delta_linear", "reference"): 1}
    finally:
        del PATHS["delta_linear"]["doubled"]
        choice.cache_clear()


def test_the_choice_does_not_depend_on_what_it_does_not_read():
    """The number of tasks is no part of a problem, and sizes of the matrix only of products with kernel words: no two
    keys for one answer."""
    assert set(Problem.__dataclass_fields__) == {
        "op",
        "device",
        "dtype",
        "rows",
        "entries",
        "places",
        "out_features",
        "in_features",
        "rank",
        "layout",
        "transposed",
        "empty",
        "exact",
        "variant",
    }
    choice.cache_clear()
    for size in (8, 16):
        bank, codes = Bank(size, size), pack(torch.randint(0, 4, (size, 5), dtype=torch.uint8))
        bank.add(0, PackedFactors(codes, codes, torch.rand(5)))
        delta_linear(torch.randn(2, size), bank, Routing.of([0]))
    assert choice.cache_info().currsize == 1
