"""Biases and norms in few bits: tables keep them so, beside others, and give what a stack gives."""

import copy

import pytest
import torch
from torch import nn

from dts.adapter import Entry
from dts.adapter.grid import rounded_to
from dts.nn import DTSModel
from dts.nn.deltas import ParameterDelta, Table
from dts.nn.deltas.piece import Piece
from dts_kernels import Routing
from dts_kernels.cpu import native
from dts_kernels.rounded import RoundedVectors

pytestmark = pytest.mark.skipif(not native.variants(), reason="needs a C compiler")


def grid(n: int, seed: int = 0, bits: int = 3):
    made = rounded_to(0.1 * torch.randn(n, generator=torch.Generator().manual_seed(seed)), bits)
    assert made is not None
    return made


def tables(given: dict) -> tuple[Table, Table]:
    """(of what is given, of its numbers)"""
    few, wide = Table(stays=True), Table(stays=True)
    for slot, one in given.items():
        few.add(slot, one if isinstance(one, torch.Tensor) else one.vector())
        wide.add(slot, one if isinstance(one, torch.Tensor) else one.values())
    return few, wide


def same(few: Table, wide: Table) -> None:
    assert few.slots.keys() == wide.slots.keys() and few.size == wide.size and few.longest == wide.longest
    if not wide.slots:
        return
    assert torch.equal(few.stack, wide.stack) and torch.equal(few.length, wide.length) and few.even == wide.even
    for slot in wide.slots:
        assert torch.equal(few.tensors[slot], wide.tensors[slot])
    for entries in ([0], [1], [{0: 0.3, 2: 1.5}], [2, None, {0: 2.0, 1: 1.0}]):
        routing = Routing.of(entries)
        for dtype in (torch.float32, torch.bfloat16, torch.float64):
            base = torch.linspace(-1, 1, wide.longest).to(dtype)
            assert torch.equal(few.rows(routing, dtype), wide.rows(routing, dtype))
            assert torch.equal(few.added_to(base, routing), wide.added_to(base, routing))
            assert torch.equal(few.lengths(routing), wide.lengths(routing))


@torch.no_grad()
def test_a_table_keeps_the_bits_and_gives_the_numbers():
    few, wide = tables({0: grid(70), 2: grid(70, 1, 8)})
    assert isinstance(few.source, RoundedVectors)
    assert sum(t.nbytes for t in few.held()) == -(-70 * 3 // 8) + 70 + 2 * 2 * 2
    same(few, wide)
    same(copy.deepcopy(few), wide)
    for table in (few, wide):
        table.remove(2)
        table.remove(0)
    assert few.filled and not few.held()
    same(few, wide)


@torch.no_grad()
@pytest.mark.parametrize("order", [(0, 1, 2), (1, 0, 2), (2, 1, 0)], ids=str)
def test_numbers_in_float32_lie_beside_them(order):
    given = {0: grid(70), 1: torch.randn(70), 2: grid(70, 1, 4)}
    few, wide = tables({slot: given[slot] for slot in order})
    assert isinstance(few.source, RoundedVectors)
    same(few, wide)


@torch.no_grad()
@pytest.mark.parametrize("other", [torch.randn(70).double(), torch.randn(50), torch.randn(70).half()])
def test_what_cannot_makes_a_stack_of_all(other):
    for order in ((0, 1), (1, 0)):
        given = {0: grid(70), 1: other}
        few, wide = tables({slot: given[slot] for slot in order})
        assert isinstance(few.source, torch.Tensor) and few.source.dtype == wide.source.dtype
        same(few, wide)


def test_where_it_is_already_it_stays_as_it_is():
    few, wide = tables({0: grid(70), 2: grid(70, 1, 8)})
    source = few.source
    few.to("cpu")
    assert few.source is source
    few.to("meta")
    assert few.source.is_meta and few.source.shape == wide.source.shape


def test_parts_of_a_fused_parameter_and_other_shapes_add_up_as_numbers():
    one, two = grid(32), grid(32, 1, 4)
    fused, shaped = ParameterDelta((64,)), ParameterDelta((1, 32))
    for row, part in ((0, one), (32, two)):
        fused.add(0, Piece("raw", part.vector(), row=row))
    shaped.add(0, Piece("raw", one.vector()))
    assert torch.equal(fused.raw.tensors[0], torch.cat([one.values(), two.values()]))
    assert torch.equal(shaped.raw.tensors[0], one.values()[None])


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.dense, self.norm, self.rms = nn.Linear(32, 70), nn.LayerNorm(70), nn.RMSNorm(70)

    def forward(self, x):
        return self.rms(self.norm(self.dense(x)))


def model(few: bool) -> DTSModel:
    torch.manual_seed(0)
    made = DTSModel(Small().eval().requires_grad_(False))
    for task in range(3):
        entries = {}
        for number, name in enumerate(("dense.bias", "norm.weight", "norm.bias", "rms.weight")):
            one = grid(70, 10 * task + number, (3, 4, 8)[task])
            stored = {"grid": one} if few else {"tensor": one.values()}
            entries[name] = Entry(name, name, (70,), "delta", **stored)
        made.load_task(f"task{task}", entries)
    return made


@pytest.mark.parametrize("grad", [False, True], ids=["no grad", "grad"])
def test_models_answer_as_with_numbers(grad):
    few, wide = model(True), model(False)
    assert isinstance(few.model.dense.dts.parameters["bias"].raw.source, RoundedVectors)
    assert few.status()["nbytes"] < wide.status()["nbytes"] / 3
    x = torch.randn(6, 5, 32)
    with torch.set_grad_enabled(grad):
        for tasks in (["task0"] * 6, ["task0", "task1", None, "task2", {"task0": 0.5, "task2": 0.7}, "task1"]):
            for _ in range(2):
                assert torch.equal(few(x, tasks=tasks), wide(x, tasks=tasks))
        for change in (lambda m: m.set_task("task1"), lambda m: m.delete_task("task0"), lambda m: m.set_task(None)):
            for one in (few, wide):
                change(one)
            assert torch.equal(few(x), wide(x))


@pytest.mark.parametrize("grad", [False, True], ids=["no grad", "grad"])
def test_programs_answer_as_with_numbers(grad):
    few, wide = model(True), model(False)
    x = torch.randn(6, 5, 32)
    few.set_tasks(["task0", "task1", None, "task2", {"task0": 0.5, "task2": 0.7}, "task1"])
    torch._dynamo.reset()
    program = torch.compile(few, backend="eager")
    with torch.set_grad_enabled(grad):
        for tasks in (["task1"] * 6, ["task2", "task1", None, "task2", {"task0": 0.5, "task2": 0.7}, "task1"]):
            few.set_tasks(tasks), wide.set_tasks(tasks)
            assert torch.allclose(program(x), wide(x), atol=1e-5)


@pytest.mark.parametrize("grad", [False, True], ids=["no grad", "grad"])
def test_a_program_is_not_made_twice(grad):
    made = []
    torch._dynamo.reset()
    program = torch.compile(model(True), backend=lambda graph, _: made.append(graph) or graph.forward)
    with torch.set_grad_enabled(grad):
        for task in ("task1", "task0"):
            program(torch.randn(6, 5, 32), tasks=[task] * 6)
    assert len(made) == 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_models_of_other_dtypes_and_their_copies(dtype):
    few, wide, x = model(True).to(dtype), model(False).to(dtype), torch.randn(6, 5, 32, dtype=dtype)
    few = copy.deepcopy(few)
    assert isinstance(few.model.norm.dts.parameters["bias"].raw.source, RoundedVectors)
    with torch.no_grad():
        for tasks in ("task2", ["task0", "task1", None, "task2", {"task0": 0.5, "task2": 0.7}, "task1"]):
            for _ in range(2):
                assert torch.equal(few(x, tasks=tasks), wide(x, tasks=tasks))
        few.delete_task("task0"), wide.delete_task("task0")
        assert torch.equal(few(x, tasks=["task1", "task2", None] * 2), wide(x, tasks=["task1", "task2", None] * 2))


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_call_of_the_same_task_decodes_nothing_again(dtype, monkeypatch):
    few, wide = tables({0: grid(70), 1: grid(70, 1, 4)})
    decoded, row = [], RoundedVectors.row
    monkeypatch.setattr(RoundedVectors, "row", lambda self, slot: decoded.append(slot) or row(self, slot))
    base, one = torch.linspace(-1, 1, 70).to(dtype), lambda slot: Routing.of([{slot: 1.0}])
    for slot in (0, 0, 1, 1, 0, 5):
        assert torch.equal(few.added_to(base, one(slot)), wide.added_to(base, one(slot)))
    assert decoded == [0, 1, 0]
    for table in (few, wide):
        table.add(0, grid(70, 2).vector() if table is few else grid(70, 2).values())
    assert torch.equal(few.added_to(base, one(0)), wide.added_to(base, one(0))) and len(decoded) == 4
    assert few.added_to(base, one(0)).data_ptr() != few.added_to(base, one(0)).data_ptr()  # whoever writes into it
    assert torch.equal(copy.deepcopy(few).added_to(base, one(0)), wide.added_to(base, one(0)))
    with torch.enable_grad():  # what was made without is no hindrance
        wanted = base.clone().requires_grad_()
        few.added_to(wanted, one(0)).sum().backward()
        assert torch.equal(wanted.grad, torch.ones_like(wanted))
