"""What would silently stay the base: replaced layers, kept parameters, unused layers, other base weights."""

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import prune
from torch.utils.checkpoint import checkpoint

from dts.nn import DTSModel


class Net(nn.Module):
    """embed, body.0, body.2, out; subclasses do something odd."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.body = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8))
        self.out = nn.Linear(8, 5)

    def forward(self, ids):
        return self.out(self.body(self.embed(ids)))


IDS = torch.arange(20).view(4, 5) % 11


def made(maker, cls=Net, names="ab"):
    torch.manual_seed(0)
    base = cls().double().eval()
    tasks = {t: maker.entries(base, skip=0) for t in names}
    model = DTSModel(copy.deepcopy(base))
    for t, own in tasks.items():
        model.load_task(t, own)
    return model, base, tasks


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


class Trained(nn.Module):
    """As PEFT's modules_to_save: a copy takes a module's place, which stays beside it."""

    def __init__(self, original):
        super().__init__()
        self.original, self.copy = original, copy.deepcopy(original)

    def forward(self, x):
        return self.copy(x)


@torch.no_grad()
@pytest.mark.parametrize("copied", [False, True], ids=["the model", "a copy of it"])
def test_a_copy_that_took_a_layers_place_follows_the_calls(maker, dense_twin, copied):
    model, base, tasks = made(maker)
    model.set_task("b")
    model.model.out = Trained(model.model.out)
    first, model = model, copy.deepcopy(model) if copied else model
    twins = {name: dense_twin(base, [(tasks[name], 1.0)]) for name in tasks} | {None: base}
    first.set_task(None if copied else "b")
    close(model(IDS), twins["b"](IDS))
    close(model(IDS, tasks="a"), twins["a"](IDS))
    found = model(IDS, tasks=["a", None, "b", "a"])
    for i, name in enumerate(["a", None, "b", "a"]):
        close(found[i], twins[name](IDS)[i])
    model.set_task("a")
    close(model(IDS), twins["a"](IDS))
    close(first(IDS), twins[None if copied else "a"](IDS))


def test_a_layer_parametrised_for_a_while_is_refused(maker):
    """As PEFT does within a forward with parameters that it targets by name."""
    model, _, _ = made(maker)
    model.model.out.register_forward_pre_hook(
        lambda layer, given: nn.utils.parametrize.register_parametrization(layer, "weight", nn.Identity()) and None
    )
    with pytest.raises(RuntimeError, match="out is parametrised under its tasks"):
        model(IDS, tasks="a")


@pytest.mark.filterwarnings("ignore:.*deprecated:FutureWarning")
@pytest.mark.parametrize(
    "apart",
    [
        nn.utils.parametrizations.weight_norm,
        nn.utils.parametrizations.orthogonal,
        nn.utils.weight_norm,
        nn.utils.spectral_norm,
        lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
    ],
    ids=["weight norm", "orthogonal", "weight norm of old", "spectral norm of old", "pruned"],
)
def test_a_parameter_that_was_made_a_function_of_others(maker, dense_twin, apart):
    """What that makes would be made of the base's alone, and tasks added beside it."""
    model, base, tasks = made(maker)
    model(IDS, tasks="a")
    apart(model.model.out)
    model.set_task("a")
    for call in (
        lambda: model(IDS),
        lambda: model(IDS, tasks=["a", None, "b", "a"]),
        lambda: model.merge_and_unload("b"),
    ):
        with pytest.raises(RuntimeError, match=r"out\.weight was made a function of other tensors"):
            call()
    if apart is nn.utils.weight_norm:
        nn.utils.remove_weight_norm(model.model.out)
        close(model(IDS), dense_twin(base, [(tasks["a"], 1.0)])(IDS))


@pytest.mark.parametrize("where", ["out", "body.2", "body", "embed"])
def test_a_layer_that_was_replaced(maker, dense_twin, where):
    model, base, tasks = made(maker)
    model.set_task("a")
    model(IDS)
    parent, _, name = where.rpartition(".")
    setattr(model.model.get_submodule(parent), name, copy.deepcopy(base.get_submodule(where)))
    for call in (
        lambda: model(IDS),
        lambda: model(IDS, tasks="b"),
        lambda: model(IDS, tasks=["a", "b", "a", None]),
        lambda: model.call("forward", IDS),
        lambda: model.merge_and_unload("a"),
    ):
        with pytest.raises(RuntimeError, match=rf"{where}.* was replaced after tasks were loaded"):
            call()
    close(model(IDS, tasks=[None] * 4), base(IDS))
    with pytest.raises(RuntimeError, match=r"was replaced .*\['b'\]"):
        model.load_task("a", tasks["a"])
    model.delete_task("b")
    model.load_task("a", tasks["a"])
    model.load_task("b", tasks["b"])
    for task in "ab":
        close(model(IDS, tasks=task), dense_twin(base, [(tasks[task], 1.0)])(IDS))


def test_the_whole_model_replaced(maker):
    model, base, _ = made(maker)
    model.model = base
    with pytest.raises(RuntimeError, match="was replaced"):
        model(IDS, tasks="a")


class Wrapper(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, *args):
        return self.inner(*args)


@pytest.mark.parametrize("where", ["out", "body", ""])
def test_a_layer_that_was_wrapped(maker, dense_twin, where):
    model, base, tasks = made(maker)
    if where:
        setattr(model.model, where, Wrapper(getattr(model.model, where)))
    else:
        model.model = Wrapper(model.model)
    for _ in range(2):
        close(model(IDS, tasks="a"), dense_twin(base, [(tasks["a"], 1.0)])(IDS))
    net = model.model if hasattr(model.model, "out") else model.model.inner
    holder, name = (net.out, "inner") if where == "out" else (net, "out")
    setattr(holder, name, copy.deepcopy(base.out))
    with pytest.raises(RuntimeError, match="out was replaced"):
        model(IDS, tasks="a")


def test_resized_embeddings_of_transformers(maker):
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=40,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        tie_word_embeddings=False,
    )
    model = DTSModel(transformers.LlamaForCausalLM(config).eval())
    model.load_task("a", maker.entries(model.model, skip=0))
    model(IDS, tasks="a")
    model.model.resize_token_embeddings(44)
    with pytest.raises(RuntimeError, match="replaced|resized"):
        model(IDS, tasks="a")


class KeepsList(Net):
    def __init__(self):
        super().__init__()
        self.weights = [self.out.weight]

    def forward(self, ids):
        return F.linear(self.body(self.embed(ids)), self.weights[0], self.out.bias)


class KeepsDict(Net):
    def __init__(self):
        super().__init__()
        self.body.kept = {"out": (self.out.weight,)}

    def forward(self, ids):
        return F.linear(self.body(self.embed(ids)), self.body.kept["out"][0], self.out.bias)


class KeepsAttribute(Net):
    def __init__(self):
        super().__init__()
        object.__setattr__(self, "kept", self.out.weight)

    def forward(self, ids):
        return F.linear(self.body(self.embed(ids)), self.kept, self.out.bias)


@pytest.mark.parametrize("cls", [KeepsList, KeepsDict, KeepsAttribute])
def test_parameters_that_another_module_keeps(maker, cls):
    model = cls().double()
    before = {name: type(m) for name, m in model.named_modules()}
    with pytest.raises(ValueError, match=r"(weights|body\.kept|kept) holds out\.weight"):
        DTSModel(model).load_task("a", maker.entries(model, skip=0))
    assert {name: type(m) for name, m in model.named_modules()} == before


class Skips(Net):
    def forward(self, ids):
        return self.body(self.embed(ids))


@pytest.mark.parametrize("tasks", [None, "a", ["a", "b", None, "a"]])
def test_layers_that_do_not_act_are_named(maker, tasks):
    model, _, _ = made(maker, Skips)
    model.set_task("a")
    with pytest.warns(UserWarning, match="tasks change out, which the first call did not use"):
        model(IDS, tasks=tasks)
    assert model.status()["unused"] == ["out"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(IDS, tasks=tasks)


@pytest.mark.parametrize("first", [None, "a", {}])
def test_layers_that_act_are_not_named(maker, first):
    """By a forward, a direct call of it, or a read; also if the first call is the base's."""

    class Reads(Net):
        def forward(self, ids):
            x = self.body(self.embed.forward(ids))
            return F.linear(x, self.out.weight, self.out.bias)

    model, _, _ = made(maker, Reads)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(IDS, tasks=first)
    assert model.status()["unused"] == [] and model._state.watch is None


def test_other_base_weights_under_tasks(maker):
    model, _, _ = made(maker)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.load_state_dict(model.state_dict())
    others = {name: tensor + 1 for name, tensor in model.state_dict().items()}
    with pytest.warns(UserWarning, match="other weights were loaded into 'embed'") as caught:
        model.model.load_state_dict(others)
        model.load_state_dict(others)
    assert len(caught) == 1


def test_functional_calls(maker, dense_twin):
    model, base, tasks = made(maker)
    model.set_task("a")
    shifted = {name: p.detach() + 0.1 for name, p in base.named_parameters()}
    moved = copy.deepcopy(base)
    moved.load_state_dict(shifted)
    found = torch.func.functional_call(model, {f"model.{name}": p for name, p in shifted.items()}, (IDS,))
    close(found, dense_twin(moved, [(tasks["a"], 1.0)])(IDS))
    close(model(IDS), dense_twin(base, [(tasks["a"], 1.0)])(IDS))
    found = torch.func.functional_call(model, {f"model.{name}": p for name, p in shifted.items()}, (IDS,))
    close(found, dense_twin(moved, [(tasks["a"], 1.0)])(IDS))


def test_data_parallel_copies_are_refused(maker):
    model, _, _ = made(maker)
    with pytest.raises(RuntimeError, match="nn.DataParallel"):  # as torch.nn.parallel.replicate does
        [module._replicate_for_data_parallel() for module in model.modules()]


class Checkpointed(Net):
    reentrant = nested = False

    def forward(self, ids):
        run = lambda f, x: checkpoint(f, x, use_reentrant=self.reentrant) if self.training else f(x)  # noqa: E731
        x = self.embed(ids)
        inner = (lambda x: self.body[2](run(lambda x: self.body[1](self.body[0](x)), x))) if self.nested else self.body
        return self.out(run(inner, x))


ROWS = ["a", "b", None, {"a": 0.5, "b": 0.5}]


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("tasks", [None, "a", ROWS], ids=["set_task", "one", "rows"])
@pytest.mark.parametrize("after", ["switch", "disabled", "other calls"])
def test_recomputation_uses_the_tasks_of_its_forward(maker, reentrant, tasks, after):
    model, _, _ = made(maker, Checkpointed)
    model.model.reentrant = reentrant
    model.set_task("a")
    wanted = None
    for training in (False, True):
        model.train(training)
        model.zero_grad()
        loss = model(IDS, tasks=tasks).square().sum()
        if after == "switch":
            model.set_task("b")
            loss.backward()
        elif after == "disabled":
            with model.disable_tasks():
                loss.backward()
        else:
            model(IDS, tasks="b"), model(IDS, tasks=ROWS[::-1])
            loss.backward()
        model.set_task("a")
        if wanted is None:
            wanted = gradients(model)
    assert wanted.keys() == gradients(model).keys()
    for name, grad in gradients(model).items():
        close(grad, wanted[name])


def test_checkpoints_in_checkpoints_are_right_or_refused(maker):
    model, _, _ = made(maker, Checkpointed)
    model.model.nested = True
    for reentrant in (False, True):
        model.model.reentrant = reentrant
        wanted = None
        for training in (False, True):
            model.train(training).zero_grad()
            model.set_task("a")
            loss = model(IDS).square().sum()
            if training:
                model.set_task("b")
            try:
                loss.backward()
            except RuntimeError as error:
                assert reentrant and training and "which task" in str(error)
                continue
            if wanted is not None:
                for name, grad in gradients(model).items():
                    close(grad, wanted[name])
            wanted = gradients(model)


def test_recomputation_of_modules_called_past_the_model(maker):
    """Without a call there is nothing to find the task by: refused, unless there was never another."""
    model, _, _ = made(maker, Checkpointed, "ab")
    model.set_task("a")
    model.model.eval()
    model.model(IDS).square().sum().backward()
    wanted = gradients(model)
    model.train().zero_grad()
    model.model(IDS).square().sum().backward()
    for name, grad in gradients(model).items():
        close(grad, wanted[name])
    loss = model.model(IDS).square().sum()
    model.set_task("b")
    with pytest.raises(RuntimeError, match="which task that forward used|modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("tasks", [None, "a", ROWS], ids=["set_task", "one", "rows"])
@pytest.mark.parametrize("outside", [False, True])
def test_a_checkpoint_around_the_whole_model(maker, tasks, outside):
    """An operation beside the model may ask for it again; a call that names its tasks knows them then, too."""
    model, _, _ = made(maker)
    grads = []
    for around in (False, True):
        model.zero_grad()
        model.set_task("a")
        x = torch.ones(1, requires_grad=True, dtype=torch.float64)
        run = lambda x: model(IDS, tasks=tasks) * (x if outside else 1)  # noqa: E731
        loss = (checkpoint(run, x, use_reentrant=False) if around else run(x)).square().sum()
        model.set_task("b")
        if outside and around and tasks is None:
            with pytest.raises(RuntimeError, match="which task that forward used"):
                loss.backward()
            return
        loss.backward()
        grads.append(gradients(model))
    for name, grad in grads[0].items():
        close(grad, grads[1][name])


def test_a_module_may_become_a_layer_while_another_thread_looks_at_its_attributes(maker):
    base = nn.Sequential(nn.Linear(4, 4))

    class Meanwhile(list):
        """Looked through as another thread gives the module an attribute more."""

        def __iter__(self):
            vars(base[0])["more"] = True
            return super().__iter__()

    base[0].kept = Meanwhile()
    model = DTSModel(base)
    model.load_task("a", maker.entries(base, 0))
    assert base[0].more and model.tasks == ["a"]
