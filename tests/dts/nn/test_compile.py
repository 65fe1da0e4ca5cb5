"""`torch.compile(model, fullgraph=True)`: a task a row, switched and loaded, and no program more for it."""

import contextlib
import copy
import subprocess
import sys

import pytest
import torch
from torch import nn

from dts.nn import DTSModel

ROWS = ["a", "b", None, "a"]


class Bert(nn.Module):
    """As BERT has it: tables that all rows share, norms with a bias, a head."""

    def __init__(self):
        super().__init__()
        self.words, self.places, self.norm = nn.Embedding(20, 8), nn.Embedding(16, 8), nn.LayerNorm(8)
        self.query, self.key, self.value, self.dense = (nn.Linear(8, 8) for _ in range(4))
        self.classifier = nn.Linear(8, 2)

    def forward(self, ids):
        x = self.norm(self.words(ids) + self.places(torch.arange(ids.shape[1])[None]))
        x = x + self.dense(nn.functional.scaled_dot_product_attention(self.query(x), self.key(x), self.value(x)))
        return self.classifier(x[:, 0])


class Llama(nn.Module):
    """As Llama has it: root mean square norms, no bias, a gate, an output for each token."""

    def __init__(self):
        super().__init__()
        self.words, self.norm, self.last = nn.Embedding(20, 8), nn.RMSNorm(8), nn.RMSNorm(8)
        self.query, self.key, self.value = nn.Linear(8, 8, False), nn.Linear(8, 4, False), nn.Linear(8, 4, False)
        self.gate, self.up, self.down = nn.Linear(8, 12, False), nn.Linear(8, 12, False), nn.Linear(12, 8, False)
        self.lm_head = nn.Linear(8, 20, False)

    def forward(self, ids):
        x = ids if ids.is_floating_point() else self.words(ids)
        y = self.norm(x)
        q, k, v = self.query(y).unflatten(-1, (2, 4)).transpose(1, 2), self.key(y)[:, None], self.value(y)[:, None]
        x = x + nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        y = self.last(x)
        return self.lm_head(x + self.down(nn.functional.silu(self.gate(y)) * self.up(y)))


class Token(nn.Module):
    """Parameters of its own beside a layer's: run once a task."""

    def __init__(self):
        super().__init__()
        self.token, self.dense = nn.Parameter(torch.randn(1, 1, 8)), nn.Linear(8, 8)

    def forward(self, x):
        return torch.cat([self.token.expand(x.shape[0], -1, -1), self.dense(x)], 1)


class Vit(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.own, self.out = nn.Embedding(20, 8), Token(), nn.Linear(8, 6)

    def forward(self, ids):
        return self.out(self.own(self.words(ids)))


class Programs:
    """A backend that counts what it is given, and runs it."""

    def __init__(self):
        self.count = 0

    def __call__(self, graph, inputs):
        self.count += 1
        return graph.forward


@pytest.fixture(autouse=True)
def reset():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@contextlib.contextmanager
def no_other_program():
    """Compiling again is an error."""
    with torch._dynamo.config.patch(error_on_recompile=True):
        yield


def built(kind, maker):
    """(the model with tasks a and b, its twin that is not compiled, entries of c, token ids)."""
    torch.manual_seed(0)
    base = kind().double().eval()
    tasks = {name: maker.entries(base, skip=0) for name in "abc"}
    if kind is Bert:  # a's head is another one, and wider
        for name, classes in (("a", 5), ("c", 4)):
            head = {"classifier.weight": (classes, 8), "classifier.bias": (classes,)}
            tasks[name] |= {tensor: maker.head(tensor, *shape) for tensor, shape in head.items()}
    models = DTSModel(base), DTSModel(copy.deepcopy(base))
    for model in models:
        for name in "ab":
            model.load_task(name, tasks[name])
    return *models, tasks, torch.randint(0, 20, (4, 5), generator=torch.Generator().manual_seed(3))


def agree(program, twin, ids, tasks):
    """The program's answers are the twin's; it keeps one width for all tasks, the twin that of one that is named."""
    found, wanted = program(ids, tasks=tasks), twin(ids, tasks=tasks)
    torch.testing.assert_close(found[..., : wanted.shape[-1]], wanted, rtol=1e-12, atol=1e-12)
    assert (found[..., wanted.shape[-1] :] == -torch.inf).all()


@torch.no_grad()
@pytest.mark.parametrize("kind", [Bert, pytest.param(Llama, marks=pytest.mark.exports)])
def test_tasks_are_named_switched_and_loaded_in_the_same_programs(kind, maker):
    model, twin, tasks, ids = built(kind, maker)
    backend = Programs()
    program = torch.compile(model, fullgraph=True, backend=backend)
    agree(program, twin, ids, ROWS)
    agree(program, twin, ids, "a")
    assert backend.count == 2  # one for rows of several tasks, one for all rows alike
    with no_other_program():
        for asked in (["b", "b", "a", None], "b", None, ["a"] * 4, {"a": 0.5}):
            agree(program, twin, ids, asked)
        for names, given in (("c", "c"), ("b", "a"), ("b", "c"), ("c", "b"), ("a", "a")):
            for one in (model, twin):
                one.load_task(names, tasks[given])
            for asked in (["a", "c", None, "b"], ROWS, names):
                agree(program, twin, ids, asked)
        for one in (model, twin):
            one.delete_task("c")
            one.set_task("b")
        torch.testing.assert_close(program(ids)[..., :2], twin(ids)[..., :2], rtol=1e-12, atol=1e-12)
        for one in (model, twin):
            one.set_tasks(["b", None, "a", "b"])
        torch.testing.assert_close(program(ids), twin(ids), rtol=1e-12, atol=1e-12)
    assert backend.count == 2


@torch.no_grad()
@pytest.mark.exports
def test_numbers_of_rows_share_a_program_from_the_second_on(maker):
    model, twin, _, ids = built(Llama, maker)
    backend = Programs()
    program = torch.compile(model, fullgraph=True, backend=backend)
    for rows in (4, 3, 2):
        agree(program, twin, ids[:rows], ROWS[:rows])
    count = backend.count
    assert count <= 2
    with no_other_program():
        agree(program, twin, ids.repeat(3, 1), ROWS * 3)
    assert backend.count == count


@torch.no_grad()
def test_compiled_in_place(maker):
    model, twin, _, ids = built(Llama, maker)
    backend = Programs()
    model.compile(fullgraph=True, backend=backend)
    for asked in (ROWS, "b"):
        agree(model, twin, ids, asked)
    with no_other_program():
        agree(model, twin, ids, ["b", "a", "a", None])
    assert backend.count == 2


@torch.no_grad()
@pytest.mark.exports
def test_modules_that_run_once_a_task_do_so_outside_of_the_program(maker):
    model, twin, _, ids = built(Vit, maker)
    program = torch.compile(model, fullgraph=True, backend="eager")
    agree(program, twin, ids, ROWS)
    agree(program, twin, ids, "a")
    with no_other_program():
        agree(program, twin, ids, ["b", "a", None, "b"])


@pytest.mark.exports
def test_gradients_reach_the_inputs(maker):
    model, twin, _, _ = built(Llama, maker)

    def gradient(run):
        x = torch.ones(4, 5, 8, dtype=torch.float64, requires_grad=True)
        run(x, tasks=ROWS).square().sum().backward()
        return x.grad

    program = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(gradient(program), gradient(twin), rtol=1e-12, atol=1e-12)


@torch.no_grad()
@pytest.mark.exports
def test_names_within_a_users_own_compiled_function(maker):
    """They break it, so that what follows is as right; where it may not break it is told what to do."""
    model, twin, _, ids = built(Llama, maker)
    wanted = twin(ids, tasks=ROWS) + 1
    loose = torch.compile(lambda x: model(x, tasks=ROWS) + 1, backend="eager")
    torch.testing.assert_close(loose(ids), wanted, rtol=1e-12, atol=1e-12)
    whole = torch.compile(lambda x: model(x, tasks=ROWS) + 1, backend="eager", fullgraph=True)
    with pytest.raises(torch._dynamo.exc.Unsupported, match=r"compile the model itself, torch.compile\(model\)"):
        whole(ids)
    for one in (model, twin):
        one.set_task("b")
    without = torch.compile(lambda x: model(x) + 1, backend="eager", fullgraph=True)
    torch.testing.assert_close(without(ids), twin(ids) + 1, rtol=1e-12, atol=1e-12)


@torch.no_grad()
def test_a_copy_has_tasks_of_its_own(maker):
    """What a program looks up by a key is not the copy's."""
    model, twin, tasks, ids = built(Llama, maker)
    program = torch.compile(model, fullgraph=True, backend="eager")
    agree(program, twin, ids, ROWS)
    copied = copy.deepcopy(model)
    model.load_task("a", tasks["c"])
    agree(torch.compile(copied, fullgraph=True, backend="eager"), twin, ids, ROWS)
    twin.load_task("a", tasks["c"])
    agree(program, twin, ids, ROWS)


@torch.no_grad()
@pytest.mark.exports
@pytest.mark.parametrize("kind", [Bert, Llama])
def test_machine_code(kind, maker):
    model, twin, tasks, ids = built(kind, maker)
    program = torch.compile(model, fullgraph=True)
    agree(program, twin, ids, ROWS)
    with no_other_program():
        for one in (model, twin):
            one.load_task("b", tasks["c"])
        agree(program, twin, ids, ["b", "a", "a", None])


def test_a_torch_with_other_names_of_its_own_still_has_models():
    program = """
import torch
from torch._C._dynamo import eval_frame
del eval_frame._FrameExecStrategy
from dts.nn import DTSModel
print(tuple(DTSModel(torch.nn.Linear(4, 3))(torch.ones(2, 4)).shape))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.stdout == "(2, 3)\n", done.stderr
