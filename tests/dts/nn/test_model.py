"""`DTSModel` on small modules: names, heads, vocabularies, errors, memory, compilation."""

import copy

import pytest
import torch
from torch import nn

from dts.adapter.entries import Entry
from dts.nn import DTSLinear, DTSModel


class Tiny(nn.Module):
    """Embedding, class token, norm, head: the parts of a classifier, in float64."""

    def __init__(self, classes=3, vocabulary=20, d=8):
        super().__init__()
        self.embed = nn.Embedding(vocabulary, d)
        self.norm = nn.LayerNorm(d)
        self.dense = nn.Linear(d, d)
        self.classifier = nn.Linear(d, classes)
        self.double()

    def forward(self, ids):
        return self.classifier(torch.tanh(self.dense(self.norm(self.embed(ids)))).mean(1))


@pytest.fixture
def base():
    torch.manual_seed(0)
    return Tiny().eval()


@pytest.fixture
def ids():
    return torch.randint(0, 20, (4, 5), generator=torch.Generator().manual_seed(3))


def encoder(maker, base):
    return {n: e for n, e in maker.entries(base, skip=0).items() if not n.startswith("classifier")}


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def headed(twin, entries):
    """The dense twin with an entry's own head."""
    weight, bias = entries["classifier.weight"].tensor, entries["classifier.bias"].tensor
    twin.classifier = nn.Linear(weight.shape[1], weight.shape[0], dtype=weight.dtype)
    twin.classifier.weight.data, twin.classifier.bias.data = weight, bias
    return twin


def test_heads_with_different_numbers_of_classes(base, ids, maker, dense_twin):
    tasks = {}
    for name, classes in (("two", 2), ("six", 6), ("three", 3)):
        tasks[name] = encoder(maker, base) | {
            "classifier.weight": maker.head("classifier.weight", classes, 8),
            "classifier.bias": maker.head("classifier.bias", classes),
        }
    model = DTSModel(copy.deepcopy(base))
    for name, entries in tasks.items():
        model.load_task(name, entries)
    rows = ["six", "two", "three", "two"]
    logits = model(ids, tasks=rows)
    assert logits.shape == (4, 6)
    for i, (name, own) in enumerate(zip(rows, model.task_logits(logits))):
        expected = headed(dense_twin(base, [(tasks[name], 1.0)]), tasks[name])(ids[i : i + 1])[0]
        close(own, expected)
        assert torch.isinf(logits[i, len(own) :]).all() and logits.argmax(-1)[i] == expected.argmax()
    model.set_task("two")
    assert [row.shape for row in model.task_logits(model(ids))] == [(2,)] * 4
    merged = model.merge_and_unload("two")
    close(merged(ids), headed(dense_twin(base, [(tasks["two"], 1.0)]), tasks["two"])(ids))
    assert merged.classifier.out_features == 2


def test_rows_without_a_head_say_so(base, ids, maker):
    model = DTSModel(base)
    model.load_task("a", {"classifier.weight": maker.head("classifier.weight", 2, 8)})
    model.load_task("six", {"classifier.weight": maker.head("classifier.weight", 6, 8)})
    model.load_task("plain", encoder(maker, base))
    with pytest.raises(ValueError, match="the base, which has no 'classifier' of its own; tasks that have one: .*'a'"):
        model.set_task(None)
        model(ids)
    with pytest.raises(ValueError, match="row 1 uses the base"):
        model(ids, tasks=["a", None, "a", "a"])
    with pytest.raises(ValueError, match="row 2 uses 'plain'"):
        model(ids, tasks=["a", "a", "plain", "a"])
    with pytest.raises(ValueError, match="different shapes"):
        model(ids, tasks={"a": 0.5, "six": 0.5})
    assert model(ids, tasks=["a", "six", "six", "a"]).shape == (4, 6)


@pytest.mark.parametrize(
    "mixture, words",
    [
        ({"two": 0.5, "three": 0.5}, "mixes tasks whose 'classifier' has different shapes"),
        ({"two": 0.5, "none": 0.5}, "uses 'none', which has no 'classifier' of its own"),
    ],
)
def test_heads_that_cannot_be_added_are_not_written_either(base, ids, maker, mixture, words):
    """Of two classes and of three a model of three was made, whose answers were nobody's."""
    model = DTSModel(copy.deepcopy(base))
    for name, classes in (("two", 2), ("three", 3), ("none", 0)):
        head = {
            "classifier.weight": maker.head("classifier.weight", classes, 8),
            "classifier.bias": maker.head("classifier.bias", classes),
        }
        model.load_task(name, encoder(maker, base) | (head if classes else {}))
    expected = model(ids, tasks="two")
    with pytest.raises(ValueError, match=f"this mixture is no one model: it {words}"):
        model.merge_and_unload(mixture)
    assert model.tasks == ["two", "three", "none"]
    close(model(ids, tasks="two"), expected)
    close(model.merge_and_unload("two")(ids), expected)


def test_enlarged_vocabulary(maker, dense_twin):
    torch.manual_seed(0)
    base = nn.ModuleDict({"embed": nn.Embedding(10, 8), "head": nn.Linear(8, 10, bias=False)}).double()
    base["head"].weight = base["embed"].weight
    model = nn.Sequential(base["embed"], base["head"])
    entries = {
        name: {
            "0.weight": Entry(
                "0.weight",
                "0.weight",
                (10 + added, 8),
                "factors",
                factors=maker.factors(10, 8),
                added_rows=maker.randn(added, 8, scale=1.0),
            )
        }
        for name, added in (("two", 2), ("three", 3))
    }
    dense = {
        name: torch.cat(
            [model[0].weight + e["0.weight"].factors.reconstruct(dtype=torch.float64), e["0.weight"].added_rows]
        ).detach()
        for name, e in entries.items()
    }
    dts = DTSModel(copy.deepcopy(model))
    for name, e in entries.items():
        dts.load_task(name, e)
    ids = torch.tensor([[1, 11, 3], [12, 0, 9], [1, 2, 3]])
    rows = ["two", "three", None]
    logits = dts(ids, tasks=rows)
    assert logits.shape == (3, 3, 13)
    dense[None] = model[0].weight.detach()
    for i, (name, own) in enumerate(zip(rows, dts.task_logits(logits))):
        close(own, dense[name][ids[i]] @ dense[name].T)
        assert torch.isinf(logits[i, :, own.shape[-1] :]).all()
    with pytest.raises(IndexError, match="beyond the vocabulary of its row's task"):
        dts(ids, tasks=["two", "two", None])
    merged = dts.merge_and_unload("three")
    close(merged[0].weight.detach(), dense["three"])
    assert merged[0].weight is merged[1].weight and merged[0].num_embeddings == merged[1].out_features == 13


def test_unknown_tasks_name_those_there_are(base, ids, maker):
    model = DTSModel(base)
    model.load_task("trec", encoder(maker, base))
    for attempt in (
        lambda: model.set_task("sst2"),
        lambda: model(ids, tasks=["trec", "sst2", None, "trec"]),
        lambda: model(ids, tasks={"sst2": 1.0}),
        lambda: model.delete_task("sst2"),
    ):
        with pytest.raises(ValueError, match=r"no task 'sst2'; the loaded tasks are 'trec'"):
            attempt()
    with pytest.raises(ValueError, match="tasks has 3 items, one a row, but no input has 3 rows"):
        model(ids, tasks=["trec", None, None])
    with pytest.raises(TypeError, match="a task is a name"):
        model(ids, tasks=["trec", 1, None, None])


def test_an_adapter_that_does_not_fit_is_refused_whole(base, ids, maker):
    model = DTSModel(base)
    before = model(ids)
    entries = {
        "dense.weight": Entry("dense.weight", "dense.weight", (9, 8), "factors", factors=maker.factors(9, 8)),
        "dense.bias": Entry("dense.bias", "dense.bias", (7,), "delta", tensor=maker.randn(7)),
        "other.weight": Entry("other.weight", "other.weight", (7,), "delta", tensor=maker.randn(7)),
        "score.weight": maker.head("score.weight", 2, 8),
        "norm.weight": Entry("norm.weight", "norm.weight", (8,), "delta", tensor=maker.randn(8)),
    }
    with pytest.raises(ValueError) as error:
        model.load_task("bad", entries)
    for part in (
        "dense.weight: the adapter is for [9, 8], the model has [8, 8]",
        "dense.bias",
        "other.weight",
        "score.weight [2, 8]: the model has no such parameter (only the fine-tune has it",
    ):
        assert part in str(error.value)
    assert "norm.weight" not in str(error.value)
    assert model.tasks == [] and torch.equal(model(ids), before) and type(model.dense) is nn.Linear


def test_names_with_another_prefix(base, ids, maker, dense_twin):
    entries = encoder(maker, base)
    wrapped = {
        f"bert.{n}": Entry(**{**vars(e), "name": f"bert.{n}", "base_name": f"encoder.{n}"}) for n, e in entries.items()
    }
    expected = dense_twin(base, [(entries, 1.0)])(ids)
    model = DTSModel(copy.deepcopy(base))
    model.load_task("a", wrapped)
    close(model(ids, tasks="a"), expected)
    outer = DTSModel(nn.ModuleDict({"model": copy.deepcopy(base)}))
    outer.load_task("a", entries)
    outer.set_task("a")
    close(outer.model["model"](ids), expected)


def test_tasks_come_and_go(base, ids, maker, dense_twin):
    model, plain = DTSModel(copy.deepcopy(base)), base(ids)
    tasks = {name: encoder(maker, base) for name in "abc"}
    for name in "ab":
        model.load_task(name, tasks[name])
    model.set_task("a")
    model.delete_task("a")
    close(model(ids), plain)
    model.load_task("c", tasks["c"])
    model.load_task("b", tasks["a"])  # replaced
    expected = {None: plain}
    for name, entries in (("c", tasks["c"]), ("b", tasks["a"])):
        expected[name] = dense_twin(base, [(entries, 1.0)])(ids)
    rows = ["b", "c", None, "b"]
    close(model(ids, tasks=rows), torch.stack([expected[t][i] for i, t in enumerate(rows)]))
    assert sorted(model.tasks) == ["b", "c"]
    for name in "bc":
        model.delete_task(name)
    close(model(ids), plain)
    assert model.status()["nbytes"] == 0


def test_no_dense_delta_is_kept(maker):
    """What a task adds to memory is what its entries hold, not the size of the base."""
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(256, 256), nn.LayerNorm(256), nn.Linear(256, 256))
    model = DTSModel(base)
    parameters = dict(base.named_parameters())
    stored = 0
    for task in "abcd":
        entries = {}
        for name, parameter in parameters.items():
            if parameter.dim() == 2:
                factors = maker.factors(*parameter.shape, rank=8)
                entries[name] = Entry(name, name, tuple(parameter.shape), "factors", factors=factors)
            else:
                entries[name] = Entry(name, name, (256,), "delta", tensor=maker.randn(256, dtype=torch.float32))
        model.load_task(task, entries)
        stored += sum(e.factors.nbytes if e.factors else e.tensor.nbytes for e in entries.values())
        assert task != "d" or any(e.factors and e.factors.samples for e in entries.values())
    model(torch.randn(4, 256), tasks=list("abcd"))
    assert model.status()["nbytes"] == stored
    storages = [t.untyped_storage() for t in _tensors(model) if t.dtype != torch.int64]
    held = {storage.data_ptr(): storage.nbytes() for storage in storages}
    dense = sum(p.nbytes for p in base.parameters())
    assert sum(held.values()) < dense + stored + 1024


def _tensors(root, seen=None):
    """Every tensor reachable from an object."""
    seen = set() if seen is None else seen
    if id(root) in seen or isinstance(root, type):
        return
    seen.add(id(root))
    if isinstance(root, torch.Tensor):
        yield root
        return
    children = list(root.values()) if isinstance(root, dict) else list(root) if isinstance(root, (list, tuple)) else []
    for child in [*children, *vars(root).values()] if hasattr(root, "__dict__") else children:
        yield from _tensors(child, seen)


def test_copies_dtypes_and_state(base, ids, maker):
    model = DTSModel(base)
    whole = Entry("dense.weight", "dense.weight", (8, 8), "factors", factors=maker.factors(8, 8))
    model.load_task("a", encoder(maker, base) | {"dense.weight": whole})
    assert model.state_dict().keys() == Tiny().state_dict().keys()
    twin = copy.deepcopy(model)
    twin.set_task("a")
    assert not torch.allclose(twin(ids), model(ids)) and torch.equal(model(ids, tasks="a"), twin(ids))
    plain = twin(ids)
    half = twin.to(torch.bfloat16)
    assert half(ids).dtype == torch.bfloat16
    torch.testing.assert_close(half(ids).double(), plain, rtol=0.05, atol=0.05)
    codes = model.dense.dts.parameters["weight"].plain.main.banks["components"].bank.factors(0)
    assert codes.u.dtype == torch.uint8 and codes.sigma.dtype == torch.float32


def test_the_meta_device_would_keep_no_task(base, ids, maker):
    """Half of the model had moved when torch said that there is no data."""
    model = DTSModel(base)
    model.load_task("a", encoder(maker, base))
    expected = model(ids, tasks="a")
    for move in (
        lambda: model.to("meta"),
        lambda: model.to(device=torch.device("meta"), dtype=torch.float32),
        lambda: model.to(torch.empty(0, device="meta")),
        lambda: model.to_empty(device="meta"),
    ):
        with pytest.raises(ValueError, match="bits the meta device does not keep: delete them first"):
            move()
        assert torch.equal(model(ids, tasks="a"), expected)
    with pytest.raises(ValueError, match="does not keep"):
        nn.Sequential(copy.deepcopy(model)).to("meta")
    model.delete_task("a")
    assert next(model.to("meta").parameters()).is_meta


def test_loss_of_a_batch_of_tasks_reaches_the_input(base, maker, dense_twin):
    entries = {n: e for n, e in encoder(maker, base).items() if not n.startswith("embed")}
    tail = nn.Sequential(base.norm, base.dense)
    names = {"norm": "0", "dense": "1"}
    renamed = {n.replace(*next((k, v) for k, v in names.items() if n.startswith(k))): e for n, e in entries.items()}
    model = DTSModel(copy.deepcopy(tail))
    model.load_task("a", {n: Entry(**{**vars(e), "name": n, "base_name": n}) for n, e in renamed.items()})
    x = maker.randn(2, 3, 8, scale=1.0).requires_grad_()
    model(x, tasks=["a", None]).square().sum().backward()
    twin_x = x.detach().clone().requires_grad_()
    twin = dense_twin(tail, [({n: e for n, e in renamed.items()}, 1.0)])
    (twin(twin_x[:1]).square().sum() + tail(twin_x[1:]).square().sum()).backward()
    close(x.grad, twin_x.grad)


def test_switching_does_not_recompile(base, ids, maker):
    model = DTSModel(base)
    for name in "ab":
        model.load_task(name, encoder(maker, base))
    expected = {}
    for task in (None, "a", "b"):
        model.set_task(task)
        expected[task] = model(ids)
    programs = 0

    def count(graph, example_inputs):
        nonlocal programs
        programs += 1
        return graph.forward

    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend=count)
    for task in ("a", None, "b", "a"):
        model.set_task(task)
        close(compiled(ids), expected[task])
    assert programs == 1


def test_switching_a_compiled_linear_does_not_recompile(maker):
    torch.manual_seed(0)
    linear = DTSLinear.from_linear(nn.Linear(8, 6).double())
    linear.load_task("a", maker.factors(6, 8), maker.randn(6))
    linear.load_task("b", maker.factors(6, 8, rank=5, rows=3, columns=4))
    programs = 0

    def count(graph, example_inputs):
        nonlocal programs
        programs += 1
        return graph.forward

    torch._dynamo.reset()
    compiled = torch.compile(linear, fullgraph=True, backend=count)
    x = maker.randn(4, 8, scale=1.0)
    for task in ("a", "b", None, "a"):
        linear.set_task(task)
        close(compiled(x), linear(x))
    assert programs == 1


@pytest.mark.parametrize("small", [3, 12, 13, 20])
def test_a_layer_with_an_own_head_and_added_rows_knows_the_width_of_each_task(maker, small):
    """The own head is smaller than the base's 10 outputs, larger, as large as the enlarged one, or the largest."""
    base = nn.ModuleDict({"head": nn.Linear(8, 10, bias=False)}).double()
    weight, rows = base["head"].weight.detach().clone(), maker.randn(3, 8, scale=1.0)
    own = maker.head("0.weight", small, 8)
    grown = Entry("0.weight", "0.weight", (13, 8), "factors", factors=maker.factors(10, 8), added_rows=rows)
    dense = {
        None: weight,
        "own": own.tensor,
        "grown": torch.cat([weight + grown.factors.reconstruct(dtype=torch.float64), rows]),
    }
    model = DTSModel(nn.Sequential(base["head"]))
    model.load_task("own", {"0.weight": own})
    model.load_task("grown", {"0.weight": grown})
    x, tasks = torch.randn(3, 8, dtype=torch.float64), ["own", "grown", None]
    with torch.no_grad():
        logits = model(x, tasks=tasks)
        assert logits.shape == (3, max(13, small))
        for i, (task, found) in enumerate(zip(tasks, model.task_logits(logits))):
            close(found, x[i] @ dense[task].double().T)
            assert torch.isinf(logits[i, len(found) :]).all()
            if task:
                close(model(x, tasks=task), x @ dense[task].double().T)


def own_head(maker, classes, inputs=8):
    return {
        "classifier.weight": maker.head("classifier.weight", classes, inputs),
        "classifier.bias": maker.head("classifier.bias", classes),
    }


def test_a_head_of_another_size_leaves_the_base_s_to_those_that_use_it(base, ids, maker, dense_twin):
    """One task changed the base's head, the other brings its own: the base has one, then."""
    own = encoder(maker, base) | own_head(maker, 6)
    entries = {name: entry for name, entry in maker.entries(base, skip=0).items()}
    model = DTSModel(copy.deepcopy(base))
    model.load_task("same", entries)
    model.load_task("other", own)
    same = dense_twin(base, [(entries, 1.0)])
    other = headed(dense_twin(base, [(own, 1.0)]), own)
    with torch.no_grad():
        out = model(ids, tasks=["same", "other", None, "same"])
        rows = model.task_logits(out)
        close(rows[0], same(ids[:1])[0])
        close(rows[1], other(ids[1:2])[0])
        close(rows[2], base(ids[2:3])[0])
        close(model(ids, tasks="same")[:, : rows[0].shape[0]], same(ids))
    with pytest.raises(ValueError, match="base's"):
        model(ids, tasks={"same": 0.5, "other": 0.5})


def test_a_head_of_other_inputs_is_refused_and_changes_nothing(base, ids, maker):
    model = DTSModel(copy.deepcopy(base))
    model.load_task("a", encoder(maker, base) | own_head(maker, 3))
    before = model(ids, tasks="a")
    for name in ("b", "a"):
        with pytest.raises(ValueError, match=r"classifier.weight.*\[3, 9\].*outputs"):
            model.load_task(name, encoder(maker, base) | own_head(maker, 3, inputs=9))
    assert model.tasks == ["a"] and torch.equal(model(ids, tasks="a"), before)


def test_task_logits_follow_the_call_they_are_of(base, ids, maker):
    model = DTSModel(base)
    for name, classes in (("two", 2), ("six", 6)):
        model.load_task(name, encoder(maker, base) | own_head(maker, classes))
    widths = lambda out: [row.shape[0] for row in model.task_logits(out)]  # noqa: E731
    model.set_task("six")
    assert widths(model(ids, tasks=["two", "six", "two", "six"])) == [2, 6, 2, 6]
    assert widths(model(ids)) == [6] * 4 and widths(model(ids[:2])) == [6] * 2
    model(ids, tasks=["two"] * 4)
    with pytest.raises(ValueError, match="nope"):
        model(ids, tasks=["nope"] * 4)
    assert widths(torch.zeros(4, 6)) == [2] * 4
    with model.disable_tasks():
        pass
    assert widths(model(ids)) == [6] * 4


def test_a_task_deleted_while_tasks_are_off_does_not_come_back_as_another(base, ids, maker):
    model = DTSModel(copy.deepcopy(base))
    model.load_task("a", maker.entries(base, skip=0))
    model.set_task("a")
    with model.disable_tasks():
        model.delete_task("a")
    assert model.status()["current"] == [{}]
    model.load_task("b", maker.entries(base, skip=0))
    close(model(ids), base(ids))
    model.set_task("b")
    with model.disable_tasks():
        close(model(ids), base(ids))
    assert model.status()["current"] == [{"b": 1.0}]


def test_a_task_in_use_that_is_loaded_again_stays_in_use(base, ids, maker):
    model = DTSModel(base)
    model.load_task("a", maker.entries(base, skip=0))
    model.set_task("a")
    model.load_task("a", maker.entries(base, skip=0))
    assert model.status()["current"] == [{"a": 1.0}] and torch.equal(model(ids), model(ids, tasks="a"))


@pytest.mark.parametrize("weight", [float("nan"), float("inf")])
def test_weights_of_a_mixture_are_finite(base, ids, maker, weight):
    model = DTSModel(base)
    model.load_task("a", maker.entries(base, skip=0))
    with pytest.raises(ValueError, match="finite"):
        model(ids, tasks={"a": weight})


def test_an_untied_head_leaves_the_tied_one_to_the_base(maker):
    base = nn.Sequential(nn.Embedding(10, 8), nn.Linear(8, 10, bias=False)).double()
    base[1].weight = base[0].weight
    ids = torch.tensor([[1, 2, 3]])
    model, plain = DTSModel(copy.deepcopy(base)), base(ids)
    model.load_task("a", {"1.weight": maker.head("1.weight", 10, 8)})
    close(model(ids), plain)


def test_heads_stored_in_by_out_are_checked_task_after_task(maker):
    """The second task meets a layer that the first has turned into a DTS layer."""
    conv1d = pytest.importorskip("transformers.pytorch_utils").Conv1D
    model = DTSModel(nn.Sequential(conv1d(4, 8)).double())
    x = torch.randn(2, 8, dtype=torch.float64)
    for name in ("one", "two"):
        with pytest.raises(ValueError, match="outputs"):
            model.load_task(name, {"0.weight": maker.head("0.weight", 9, 4)})
        head = {"0.weight": maker.head("0.weight", 8, 4), "0.bias": maker.head("0.bias", 4)}
        model.load_task(name, head)
        close(model(x, tasks=name), x @ head["0.weight"].tensor + head["0.bias"].tensor)


@pytest.mark.parametrize("place", [10_000, -1])
def test_places_beyond_a_matrix_are_refused(base, ids, maker, place):
    model, factors = DTSModel(copy.deepcopy(base)), maker.factors(8, 8, rows=4)
    factors.rows[-1] = place
    with pytest.raises(ValueError, match="dense.weight: a row .* is none of its 8"):
        model.load_task(
            "a", {"dense.weight": Entry("dense.weight", "dense.weight", (8, 8), "factors", factors=factors)}
        )
    assert model.tasks == [] and torch.equal(model(ids), base(ids))


def test_two_entries_for_one_parameter_are_refused(base, maker):
    delta = lambda n: Entry(n, n, (8,), "delta", tensor=maker.randn(8))  # noqa: E731
    with pytest.raises(ValueError, match="another entry is for norm.weight too"):
        DTSModel(base).load_task("a", {n: delta(n) for n in ("norm.weight", "bert.norm.weight")})
