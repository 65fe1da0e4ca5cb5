"""`torch_program` on a small module: every kind of part against the dense models, other sizes, what is refused."""

import pytest
import torch
from torch import nn

import dts
from dts.adapter.entries import Entry
from dts.adapter.grid import rounded_to
from dts.exports import Manifest, torch_program
from tests.dts.exports.program.toy import CLASSES, MIXED, TIGHT, WIDTH, expected, ids, toy


def run(program, tasks, given):
    rows = len(next(iter(given.values())))
    return program.exported.module()(**program.manifest.routing(tasks, rows), **given)["output"]


@torch.no_grad()
@pytest.mark.parametrize("length", [1, 4, 6])
def test_each_row_is_its_task(rows_program, length):
    base, made, program = rows_program
    given = ids(5, length)
    torch.testing.assert_close(run(program, MIXED, {"ids": given}), expected(base, made, given, MIXED), **TIGHT)


@torch.no_grad()
def test_one_row_and_one_task_for_all(rows_program):
    base, made, program = rows_program
    torch.testing.assert_close(run(program, ["b"], {"ids": ids(1)}), expected(base, made, ids(1), ["b"]), **TIGHT)
    torch.testing.assert_close(run(program, "b", {"ids": ids(4)}), expected(base, made, ids(4), ["b"] * 4), **TIGHT)
    torch.testing.assert_close(run(program, None, {"ids": ids(4)}), base(ids(4)), **TIGHT)


@torch.no_grad()
def test_one_routing_for_all_rows_and_further_axes():
    base, model, made = toy()
    given = {"ids": ids(3), "scale": torch.rand(3, 1)}
    program = torch_program(model, given, routing="call", places=2, dynamic={"ids": [1]})
    other = {"ids": ids(5, 6), "scale": torch.rand(5, 1)}
    for task in ("a", None, {"a": 0.3, "b": 0.7}):
        wanted = expected(base, made, other["ids"], [task] * 5, scale=other["scale"])
        torch.testing.assert_close(run(program, task, other), wanted, **TIGHT)


@torch.no_grad()
def test_vectors_in_few_bits_are_numbers_in_it():
    base, model, made = toy()
    for task, own in made.items():
        for name, entry in own.items():
            if entry.kind == "delta":
                own[name] = Entry(name, name, entry.shape, "delta", grid=rounded_to(entry.tensor, 4))
        model.load_task(task, own)
    program = torch_program(model, {"ids": ids(3)}, places=2)
    torch.testing.assert_close(run(program, MIXED, {"ids": ids(5)}), expected(base, made, ids(5), MIXED), **TIGHT)


@torch.no_grad()
def test_the_model_is_as_before(rows_program):
    _, model, _ = toy()
    model.set_task("a")
    before, banks = model(ids(3)), model._layers["up"].dts.parameters["weight"].plain.main.banks
    kinds = {name: type(bank) for name, bank in banks.items()}
    torch_program(model, {"ids": ids(3)})
    assert {name: type(bank) for name, bank in banks.items()} == kinds
    assert torch.equal(model(ids(3)), before)
    assert model._layers["up"].dts.parameters["weight"].plain.main.banks is banks
    model.load_task("c", {"up.bias": Entry("up.bias", "up.bias", (12,), "delta", tensor=torch.ones(12))})
    model(ids(3), tasks=["a", "c", None])


def test_factors_keep_their_bits(rows_program):
    base, made, program = rows_program
    stored = {name: t for name, t in program.exported.state_dict.items() if name in program.factors}
    task = program.manifest.tasks["a"]
    assert torch.equal(stored[f"factors.up__weight__components.task{task}_u"], made["a"]["up.weight"].factors.packed.u)
    assert {t.dtype for name, t in stored.items() if name.endswith(("_u", "_v", "_codes"))} == {torch.uint8}
    assert all(any(part in name for name in stored) for part in ("_codes", "_values", "norm__weight__raw.stack"))
    assert program.base == sum(p.nbytes for p in base.parameters())
    assert sum(program.factors.values()) == sum(stored[name].nbytes for name in program.factors)


@torch.no_grad()
def test_rows_without_a_head_get_no_numbers():
    _, model, _ = toy(tasks=())
    model.model.head = nn.Linear(WIDTH, 4, bias=False)
    for name, classes in (("a", 2), ("b", 4)):
        own = torch.randn(classes, WIDTH)
        head = Entry("head.weight", None, (classes, WIDTH), "value", tensor=own, task_only=True)
        model.load_task(name, {"head.weight": head})
    model._layers["head"].dts.in_base = False  # as a model of transformers whose checkpoint has none
    program = torch_program(model, {"ids": ids(3)})
    routing = program.manifest.routing(["a", "b", "a"], 3)
    routing["slots"][2] = -1  # as another run-time would ask for the base
    out = program.exported.module()(**routing, ids=ids(3))["output"]
    assert out[0].isfinite().tolist() == [True, True, False, False] and out[1].isfinite().all()
    assert out[2].isnan().all()
    with pytest.raises(ValueError, match="the base, without a 'head'"):
        program.manifest.routing(["a", None, "a"], 3)
    for ask in (lambda tasks: program.manifest.routing(tasks, 3), lambda tasks: model(ids(3), tasks=tasks)):
        with pytest.raises(ValueError, match="row 2 gives 'a' the weight 0, which leaves nothing of a? ?'head'"):
            ask(["a", "b", {"a": 0.0}])  # not the head that nobody trained


def test_routings_that_do_not_fit_are_refused(rows_program):
    manifest: Manifest = rows_program[2].manifest
    for tasks, rows, message in (
        (["c"], 1, "no task 'c'"),
        (["a"], 2, "1 items"),
        ({"a": 1.0, "b": 1.0, "c": 1.0}, 1, "no task 'c'"),
    ):
        with pytest.raises(ValueError, match=message):
            manifest.routing(tasks, rows)
    narrow = Manifest(manifest.tasks, {}, False, 1, [], [])
    with pytest.raises(ValueError, match="places=2"):
        narrow.routing({"a": 0.5, "b": 0.5})
    with pytest.raises(ValueError, match="one routing for all rows"):
        narrow.routing(["a", "b"], 2)


def test_what_cannot_be_a_program_is_refused():
    base, model, _ = toy()
    with pytest.raises(TypeError, match="DTSModel, not of Toy"):
        torch_program(base, {"ids": ids(3)})
    with pytest.raises(ValueError, match="no tasks.*routing is 'rows'.*places is 1.*different rows"):
        torch_program(dts.DTSModel(base), {"ids": ids(3), "scale": torch.rand(2, 1)}, routing="each", places=0)
    with pytest.raises(ValueError, match="dynamic names"):
        torch_program(model, {"ids": ids(3)}, dynamic={"id": [1]})
    with pytest.raises(ValueError, match="inputs of the program itself"):
        torch_program(model, {"ids": ids(3), "slots": ids(3)})


def test_rows_that_cannot_have_tasks_of_their_own_are_refused_by_name():
    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.scale = nn.Linear(WIDTH, WIDTH), nn.Parameter(torch.ones(WIDTH))

        def forward(self, x):
            return self.first(x) * self.scale

    model = dts.DTSModel(Sum())
    model.load_task("a", {"scale": Entry("scale", "scale", (WIDTH,), "delta", tensor=torch.ones(WIDTH))})
    x = torch.randn(3, WIDTH)
    with pytest.raises(ValueError, match="routing='call'"):
        torch_program(model, {"x": x})
    program = torch_program(model, {"x": x}, routing="call")
    with torch.no_grad():
        torch.testing.assert_close(run(program, "a", {"x": x}), 2 * model.model.first(x), **TIGHT)


def test_a_model_that_reads_its_inputs_is_told():
    class Reads(nn.Module):
        def __init__(self):
            super().__init__()
            self.one = nn.Linear(WIDTH, CLASSES)

        def forward(self, x):
            return self.one(x) if float(x.sum()) > 0 else self.one(-x)

    model = dts.DTSModel(Reads())
    model.load_task("a", {"one.bias": Entry("one.bias", "one.bias", (CLASSES,), "delta", tensor=torch.ones(CLASSES))})
    with pytest.raises(RuntimeError, match="torch.export cannot trace Reads"):
        torch_program(model, {"x": torch.ones(3, WIDTH)})
    assert model(torch.ones(3, WIDTH), tasks=["a", None, "a"]).shape == (3, CLASSES)  # and the model is as before
