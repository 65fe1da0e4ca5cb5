"""What a forward takes of the base past the layers is refused, in the first call of each kind; what is right runs."""

import copy
import io
import types
import warnings

import pytest
import torch
import torch.nn.functional as F
from each_row import loaded, weights
from torch import nn
from torch.func import functional_call, stack_module_state, vmap

import dts

WIDTH = 18


class Reads(nn.Module):
    """Two layers, of which a subclass reads the second in its way."""

    def __init__(self):
        super().__init__()
        self.first, self.inner = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        return self.read(self.first(x))


def of_state(module, x):
    made = nn.Linear(WIDTH, WIDTH, dtype=x.dtype)
    made.load_state_dict(module.inner.state_dict())
    return made(x)


def of_ensemble(module, x):
    skeleton = nn.Linear(WIDTH, WIDTH, device="meta", dtype=x.dtype)
    stacked = stack_module_state([module.first, module.inner])
    return vmap(lambda own, buffers: functional_call(skeleton, (own, buffers), x))(*stacked).sum(0)


PAST = {
    "named_parameters": lambda m, x: F.linear(x, dict(m.named_parameters())["inner.weight"]),
    "parameters": lambda m, x: m.inner(x) * sum(p.square().sum() for p in m.inner.parameters()),
    "_parameters": lambda m, x: F.linear(x, m.inner._parameters["weight"].T),
    "to_vector": lambda m, x: m.inner(x) * nn.utils.parameters_to_vector(m.inner.parameters()).norm(),
    "scaled": lambda m, x: functional_call(m.inner, {n: p * 0.5 for n, p in m.inner.named_parameters()}, x),
    "another's": lambda m, x: functional_call(m.inner, dict(m.first.named_parameters()), x),
    "ensemble": of_ensemble,
}


def like_parameters(m, x):
    """Of its kind and size alone."""
    tensor = next(m.inner.parameters())
    return m.inner(x).to(tensor.dtype) + torch.zeros_like(tensor)[0] + tensor.new_ones(()) * tensor.numel()


def assigned(m, x):
    made = nn.Linear(WIDTH, WIDTH, dtype=x.dtype)
    made.weight.data, made.bias.data = m.inner.weight.data, m.inner.bias.detach()
    return made(x)


def registered(m, x):
    made = nn.Linear(WIDTH, WIDTH, dtype=x.dtype)
    made.weight, made.bias = m.inner.weight, nn.Parameter(m.inner.bias.detach())
    return made(x)


def of_memory(m, x):
    weight = m.inner.weight
    return F.linear(x, torch.frombuffer(bytearray(bytes(weight.untyped_storage())), dtype=x.dtype).view(weight.shape))


def of_file(m, x):
    file = io.BytesIO()
    torch.save(m.inner.state_dict(), file)
    made = nn.Linear(WIDTH, WIDTH, dtype=x.dtype)
    made.load_state_dict(torch.load(io.BytesIO(file.getvalue()), weights_only=True))
    return made(x)


RIGHT = {
    "state_dict": lambda m, x: F.linear(x, m.state_dict()["inner.weight"]),
    "state's own": lambda m, x: F.linear(x, m.inner.state_dict(keep_vars=True)["weight"], m.inner.bias),
    "state": of_state,
    "saved": of_file,
    "kind": like_parameters,
    "copy": lambda m, x: copy.deepcopy(m.inner)(x),
    "get_parameter": lambda m, x: F.linear(x, m.get_parameter("inner.weight")),
    "copied": lambda m, x: F.linear(x, copy.deepcopy(m.inner.weight)),
    "frozen": lambda m, x: F.linear(x, m.inner.weight.requires_grad_(False)),
    "of type": lambda m, x: F.linear(x, m.inner.weight.type(x.dtype)),
    "memory": of_memory,
    "assigned": assigned,
    "registered": registered,
    "own": lambda m, x: functional_call(m.inner, dict(m.inner.named_parameters()), x),
    "views": lambda m, x: functional_call(m.inner, m.inner.state_dict(), x),
    "read": lambda m, x: functional_call(m.inner, {"weight": m.inner.weight, "bias": m.inner.bias}, x),
    "made": lambda m, x: functional_call(m.inner, {"weight": m.inner.weight * 2}, x),
    "given": lambda m, x: functional_call(m.inner, {"weight": torch.eye(WIDTH, dtype=x.dtype)}, x),
    "given a bias": lambda m, x: functional_call(m.inner, {"bias": torch.ones(WIDTH, dtype=x.dtype)}, x),
    "given both": lambda m, x: functional_call(m.inner, {"weight": x.T @ x, "bias": x.sum(0)}, x),
}


def made(read, maker, layer=None):
    torch.manual_seed(0)
    base = type("Base", (Reads,), {"read": staticmethod(lambda x: None)})()
    if layer is not None:
        base.inner = layer
    type(base).read = read
    base = base.double().eval()
    return base, *loaded(base, maker)


@pytest.mark.parametrize("how", PAST)
def test_it_is_refused(how, maker):
    _, model, _ = made(PAST[how], maker)
    x = maker.randn(3, WIDTH)
    base = model(x, tasks=dts.BASE)
    for tasks in ("a", "b", ["a", None, "b"], "a"):
        with warnings.catch_warnings(), pytest.raises(RuntimeError, match=r"(inner|first)\.\w+ is read past its layer"):
            warnings.simplefilter("ignore")
            model(x, tasks=tasks)
    torch.testing.assert_close(model(x, tasks=dts.BASE), base)  # which the base's numbers are right for


def test_numbers_that_are_not_there_yet_are_given_to_nobody(maker):
    _, model, _ = made(lambda m, x: taken(m)(x), maker)
    x = maker.randn(3, WIDTH)
    for task in ("a", "a", "b"):
        with pytest.raises(RuntimeError, match="incompatible tensor type"):  # of torch, which asks nobody in Python
            model(x, tasks=task)
    model.set_task("a")
    with pytest.raises(RuntimeError, match="incompatible tensor type"):
        taken(model.model)


def taken(m):
    made = nn.Linear(WIDTH, WIDTH, dtype=m.inner.weight.dtype)
    assert m.inner.weight.layout is torch.strided and not m.inner.weight.is_sparse
    made.weight.data = m.inner.weight
    return made


@pytest.mark.filterwarnings("ignore:tasks change")
@pytest.mark.parametrize("how", RIGHT)
def test_what_is_the_task_s_runs(how, maker, dense_twin):
    base, model, tasks = made(RIGHT[how], maker)
    x, asked = maker.randn(3, WIDTH), ["b", None, "a"]
    with torch.no_grad():
        for task in ("a", "b", None, "a"):
            expected = dense_twin(base, weights(task, tasks))(x)
            torch.testing.assert_close(model(x, tasks=dts.BASE if task is None else task), expected)
        if how != "given both":  # which mixes rows
            found = [model(x, tasks=asked) for _ in range(2)]
            for i, task in enumerate(asked):
                expected = dense_twin(base, weights(task, tasks))(x[i : i + 1])
                for y in found:
                    torch.testing.assert_close(y[i : i + 1], expected)


LAYERS = {
    "norm": nn.LayerNorm(WIDTH),
    "rms": nn.RMSNorm(WIDTH),
    "module": nn.Bilinear(WIDTH, WIDTH, WIDTH),
    "conv": nn.Conv2d(WIDTH, WIDTH, 1),
    "table": nn.Embedding(WIDTH, WIDTH),
    "attention": nn.MultiheadAttention(WIDTH, 2, batch_first=True),
}
INPUTS = {
    "module": lambda x: (x, x),
    "conv": lambda x: (x[:, :, None, None],),
    "table": lambda x: ((x > 0).long(),),
    "attention": lambda x: (x[:, None],) * 3,
}


@pytest.mark.filterwarnings("ignore:tasks change")
@pytest.mark.parametrize("kind", LAYERS)
def test_every_kind_of_layer_runs_with_what_a_call_puts_there(kind, maker, dense_twin):
    """Once, and with the deltas of what it does not."""

    def read(m, x):
        given = {"weight": m.inner.weight * 2} if hasattr(m.inner, "weight") else {"in_proj_weight": x.T.repeat(3, 6)}
        if getattr(m.inner, "bias", None) is not None:
            given["bias"] = m.inner.bias * 2
        y = functional_call(m.inner, given, INPUTS.get(kind, lambda x: (x,))(x))
        return (y[0] if isinstance(y, tuple) else y).sum(tuple(range(2, 4 if kind == "conv" else 2)))

    base, model, tasks = made(read, maker, LAYERS[kind])
    x = maker.randn(3, WIDTH)
    with torch.no_grad():
        for task in ("a", "b", None, "a"):
            expected = dense_twin(base, weights(task, tasks))(x)
            torch.testing.assert_close(model(x, tasks=dts.BASE if task is None else task), expected)


def test_each_kind_of_call_is_looked_at_and_only_once(maker, monkeypatch):
    """A branch that the first call did not take is another call's; later ones cost nothing, of other tasks neither."""
    from dts.nn import past

    looked = []
    before = past._Watch.__init__
    monkeypatch.setattr(
        past._Watch, "__init__", lambda self, layers, most: (looked.append(1), before(self, layers, most))[1]
    )
    torch.manual_seed(0)

    class Regularised(Reads):
        def forward(self, x, penalty=None):
            y = self.inner(self.first(x))
            return y if penalty is None else y + penalty * sum(p.square().sum() for p in self.parameters())

    base = Regularised().double().eval()
    model, tasks = loaded(base, maker)
    x = maker.randn(3, WIDTH)
    for _ in range(3):
        model(x, tasks="a")
    assert len(looked) == 1
    for _ in range(2):
        with pytest.raises(RuntimeError, match="is read past its layer, in <genexpr> .*test_past.py"):
            model(x, penalty=0.5, tasks="a")
    assert len(looked) == 3
    model(x, tasks=["a", "b", None])
    model.load_task("b", tasks["a"])
    model(x, tasks="b")
    assert len(looked) == 3


def test_a_task_that_changes_more_is_looked_at(maker):
    base = type("Past", (Reads,), {"read": PAST["named_parameters"]})().double().eval()
    all_of_it = maker.entries(base, skip=0)
    model = dts.DTSModel(copy.deepcopy(base))
    model.load_task("first", {n: e for n, e in all_of_it.items() if n.startswith("first")})
    model.load_task("both", all_of_it)
    x = maker.randn(3, WIDTH)
    model(x, tasks="first")
    for _ in range(2):
        with pytest.raises(RuntimeError, match="inner.weight is read past its layer"):
            model(x, tasks=["first", "both", None])
    model(x, tasks="first")


def test_parts_that_are_compiled_stay_so(maker, dense_twin):
    programs = []
    torch._dynamo.reset()

    class Partly(Reads):
        def forward(self, x):
            return self.inner(self.middle(self.first(x)))

    base = Partly().double().eval()
    base.middle = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU()).double()
    model, tasks = loaded(base, maker)
    backend = lambda graph, _: (programs.append(1), graph.forward)[1]  # noqa: E731
    model.model.middle.compile(backend=backend, fullgraph=True)
    x = maker.randn(3, WIDTH)
    with torch.no_grad():
        for task in ("a", "b", "a"):
            torch.testing.assert_close(model(x, tasks=task), dense_twin(base, weights(task, tasks))(x))
    assert len(programs) == 1


def test_a_program_may_have_what_its_layers_have(maker, dense_twin):
    """Of a compiled part the frames of its layers are gone; an embedding's weight goes into it as it is."""
    torch._dynamo.reset()

    class Worded(nn.Module):
        def __init__(self):
            super().__init__()
            self.part = nn.Sequential(nn.Embedding(40, WIDTH), nn.Linear(WIDTH, WIDTH))

        def words(self, ids):
            return self.part(ids)

        def forward(self, ids):
            return torch.compile(self.words, backend="eager", fullgraph=True)(ids)

    base = Worded().double().eval()
    model, tasks = loaded(base, maker)
    ids = torch.arange(6).view(2, 3)
    with torch.no_grad():
        for task in ("a", "b", "a"):
            torch.testing.assert_close(model(ids, tasks=task), dense_twin(base, weights(task, tasks))(ids))
    torch._dynamo.reset()


def test_a_generation_that_compiles_itself_is_left_alone():
    """Its programs would be of a call that is looked at, and be made again for the next."""
    from dts.nn.compiled import compiles_itself

    static, cache = types.SimpleNamespace(cache_implementation="static"), types.SimpleNamespace(is_compileable=True)
    plain = types.SimpleNamespace(generation_config=types.SimpleNamespace(cache_implementation=None))
    for asked in ({"cache_implementation": "static"}, {"generation_config": static}, {"past_key_values": cache}):
        assert compiles_itself(plain, "generate", asked)
    assert compiles_itself(types.SimpleNamespace(generation_config=static), "generate", {})
    assert not compiles_itself(plain, "generate", {}) and not compiles_itself(nn.Linear(1, 1), "generate", {})
    assert not compiles_itself(plain, "__call__", {"past_key_values": cache})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_call_that_is_looked_at_has_the_bits_of_later_ones(dtype, maker):
    torch.manual_seed(0)
    base = nn.Sequential(
        nn.Embedding(50, WIDTH),
        nn.TransformerEncoderLayer(WIDTH, 2, 4 * WIDTH, batch_first=True),
        nn.LayerNorm(WIDTH),
        nn.Linear(WIDTH, 2 * WIDTH),
        nn.GELU(),
        nn.Linear(2 * WIDTH, 5),
    )
    base = base.to(dtype).eval()
    model, _ = loaded(base, maker)
    ids = torch.randint(0, 50, (3, 7))
    with torch.no_grad():
        for tasks in ("a", ["a", "b", None]):
            first, second = model(ids, tasks=tasks), model(ids, tasks=tasks)
            assert torch.equal(first, second)
            model._watched.forget(0)
            model._watched.forget(1)


def test_a_generation_is_looked_at_for_some_tokens(maker, monkeypatch):
    """And not for thousands, each of which would take several times its time."""
    from dts.nn import past

    looked = []
    before = past._Watch._look
    monkeypatch.setattr(past._Watch, "_look", lambda self, tensor: (looked.append(1), before(self, tensor))[1])

    class Generates(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Linear(WIDTH, WIDTH)

        def forward(self, x):
            return self.first(x)

        def generate(self, x, tokens, late=False):
            for _ in range(tokens):
                x = self(x)
            return x + self.first._parameters["weight"][0] if late else x

    base, x, counts = Generates().double().eval(), maker.randn(3, WIDTH), []
    for tokens in (100, 400):
        model, _ = loaded(base, maker)
        with pytest.raises(RuntimeError, match="first.weight is read past its layer"):
            model.generate(x, tokens=2, late=True, tasks="a")
        looked.clear()
        model.generate(x, tokens=tokens, tasks="a")
        counts.append(len(looked))
        model.generate(x, tokens=tokens, tasks="a")
        assert len(looked) == counts[-1]
    assert counts[0] == counts[1] > 0
