"""Quantised base layers: the delta is added to whatever they compute, on every path."""

import copy
from functools import partial

import pytest
import torch
from coded import InBytes, InTable, InWords, OfConv1D, in_class, rounded
from torch import nn

from dts.adapter.entries import Entry
from dts.nn import DTSModel
from dts.nn.layers import DTSQuantisedConv1D, DTSQuantisedEmbedding, DTSQuantisedLinear
from dts.sites import dequantised, is_quantised

LINEAR = {"bytes": InBytes, "packed": partial(InBytes, packed=True), "words": InWords, "class": in_class}
close = partial(torch.testing.assert_close, rtol=1e-9, atol=1e-9)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(11, 8)
        self.first, self.norm, self.last = nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 5, bias=False)

    def forward(self, ids):
        return self.last(self.norm(torch.tanh(self.first(self.table(ids)))))


def net(linear=in_class, table=in_class) -> tuple[nn.Module, nn.Module]:
    """(a model of quantised layers, the plain one that it stands for)"""
    torch.manual_seed(0)
    base = Net().double().eval()
    quantised = copy.deepcopy(base)
    quantised.table, quantised.first, quantised.last = table(base.table), linear(base.first), linear(base.last)
    return quantised, rounded(base, "table", "first", "last")


def test_what_is_quantised():
    assert not any(map(is_quantised, (nn.Linear(4, 4), nn.Embedding(4, 4), nn.LayerNorm(4), nn.Conv2d(4, 4, 1))))
    assert not is_quantised(nn.Linear(4, 4).half()) and not is_quantised(nn.Linear(4, 4), "bias")
    layer = nn.Linear(4, 4)
    layer.weight = nn.Parameter(torch.zeros(4, 3))  # pruned by hand: numbers of another shape
    assert not is_quantised(layer)
    layer.weight = nn.Parameter(torch.zeros(4, 4).to(torch.float8_e4m3fn), requires_grad=False)
    assert is_quantised(layer)


@pytest.mark.parametrize("kind", LINEAR)
def test_the_numbers_of_a_linear_layer(kind):
    torch.manual_seed(0)
    for linear in (nn.Linear(300, 6).double(), nn.Linear(6, 6, bias=False).double()):
        layer = LINEAR[kind](linear)
        assert is_quantised(layer)
        close(dequantised(layer).double(), rounded(nn.Sequential(linear), "0")[0].weight)


@pytest.mark.parametrize("kind", LINEAR)
@pytest.mark.parametrize("table", [InTable, in_class], ids=["table", "class"])
def test_every_row_another_task(kind, table, maker, dense_twin):
    quantised, plain = net(LINEAR[kind], table)
    tasks = {name: maker.entries(plain, skip=0.2) for name in "ab"}
    model = DTSModel(quantised)
    for name, entries in tasks.items():
        model.load_task(name, entries)
    ids = torch.arange(12).view(4, 3) % 11
    expected = {name: dense_twin(plain, [(entries, 1.0)])(ids) for name, entries in tasks.items()} | {None: plain(ids)}
    rows = ["a", None, "b", "a"]
    close(model(ids, tasks=rows), torch.stack([expected[task][i] for i, task in enumerate(rows)]))
    mixed = dense_twin(plain, [(tasks["a"], 0.25), (tasks["b"], 0.75)])(ids)
    close(model(ids, tasks={"a": 0.25, "b": 0.75}), mixed)
    for task in ("a", "b", None):
        model.set_task(task)
        close(model(ids), expected[task])
    status = model.status()
    assert not status["once_a_task"] and not status["grouped"]
    close(copy.deepcopy(model)(ids, tasks="b"), expected["b"])


def test_a_layer_that_tasks_change_nothing_of_but_the_bias(maker, dense_twin):
    quantised, plain = net(InBytes)
    entries = {"first.bias": maker.entry("first.bias", plain.first.bias, skip=0)}
    model = DTSModel(quantised)
    model.load_task("a", entries)
    ids = torch.arange(6).view(2, 3)
    twin = dense_twin(plain, [(entries, 1.0)])
    close(model(ids, tasks=["a", None]), torch.stack([twin(ids)[0], plain(ids)[1]]))
    assert isinstance(model.model.first, DTSQuantisedLinear)


@pytest.mark.parametrize("kind", LINEAR)
def test_heads_and_enlarged_vocabularies(kind, maker):
    """A task's own head takes the place of a quantised one; rows beyond a table's and a head's are the task's."""
    quantised, plain = net(LINEAR[kind])
    own = maker.head("last.weight", 3, 8)
    grown = Entry("last.weight", "last.weight", (7, 8), "factors", factors=maker.factors(5, 8))
    grown.added_rows = maker.randn(2, 8)
    more = Entry("table.weight", "table.weight", (13, 8), "factors", factors=maker.factors(11, 8))
    more.added_rows = maker.randn(2, 8)
    model = DTSModel(quantised)
    model.load_task("own", {"last.weight": own})
    model.load_task("grown", {"last.weight": grown, "table.weight": more})
    ids = torch.tensor([[1, 2], [3, 10]])
    before = nn.Sequential(plain.first, nn.Tanh(), plain.norm)
    logits = model(ids, tasks=["own", "grown"])
    close(logits[0, :, :3], before(plain.table(ids))[0] @ own.whole.T)
    assert bool((logits[0, :, 3:] == -torch.inf).all())
    table = torch.cat([plain.table.weight + more.delta(dtype=torch.float64), more.added_rows])
    head = torch.cat([plain.last.weight + grown.delta(dtype=torch.float64), grown.added_rows])
    close(logits[1], before(table[ids])[1] @ head.T)
    beyond = torch.tensor([[1, 12]])
    close(model(beyond, tasks="grown"), before(table[beyond]) @ head.T)
    model.delete_task("grown")
    assert model(ids, tasks="own").shape[-1] == 3 and model(ids).shape[-1] == 5
    assert [len(row) for row in model.task_logits(model(ids, tasks=["own", None])[:, 0])] == [3, 5]


def test_gpt2_layers_keep_the_orientation_of_their_checkpoint(maker):
    pytest.importorskip("transformers")
    from transformers.pytorch_utils import Conv1D

    torch.manual_seed(0)
    conv = Conv1D(8, 8).double()  # [in, out], square: a delta the other way round would fit too
    conv.weight.data *= 20
    factors = maker.factors(8, 8)
    model = DTSModel(nn.Sequential(OfConv1D(conv)))
    model.load_task("a", {"0.weight": Entry("0.weight", "0.weight", (8, 8), "factors", factors=factors)})
    assert isinstance(model.model[0], DTSQuantisedConv1D)
    x = maker.randn(2, 8, scale=1.0)
    numbers = rounded(nn.Sequential(conv), "0")[0].weight
    close(dequantised(OfConv1D(conv)).double(), numbers)
    close(model(x, tasks="a"), x @ (numbers + factors.reconstruct(dtype=torch.float64)) + conv.bias)


def test_a_head_that_quantisation_took_apart_from_its_table(maker, dense_twin):
    """A model ties the two; its head alone was quantised.  What changes the table changes the head too."""
    torch.manual_seed(0)
    base = Net().double()
    base.last = nn.Linear(8, 11, bias=False).double()
    base.last.weight = base.table.weight
    entries = {"table.weight": maker.entry("table.weight", base.table.weight, skip=0)}
    quantised = copy.deepcopy(base)
    quantised.last = in_class(base.last)
    quantised.all_tied_weights_keys = {"last.weight": "table.weight"}
    plain = copy.deepcopy(base)
    plain.last.weight = nn.Parameter(rounded(base, "last").last.weight.detach().clone())
    delta = entries["table.weight"].delta(dtype=torch.float64)
    plain.table.weight.data += delta
    plain.last.weight.data += delta
    ids = torch.arange(6).view(2, 3)
    tied = Entry("last.weight", "last.weight", (11, 8), "tied", tied_to="table.weight")
    for given in (entries, entries | {"last.weight": tied}):
        model = DTSModel(copy.deepcopy(quantised))
        model.load_task("a", given)
        close(model(ids, tasks="a"), plain(ids))


def test_what_reads_a_quantised_weight_past_its_layer(maker):
    """A tensor that knows its numbers gives base + delta; bare codes are no tensor to add to, and say so."""

    class Reads(nn.Module):
        def __init__(self, layer):
            super().__init__()
            self.layer = layer

        def forward(self, x):
            return x @ self.layer.weight.T

    torch.manual_seed(0)
    linear = nn.Linear(8, 8).double()
    entries = {"layer.weight": maker.entry("layer.weight", linear.weight, skip=0)}
    x = maker.randn(2, 8, scale=1.0)
    model = DTSModel(Reads(in_class(linear)))
    model.load_task("a", entries)
    numbers = rounded(nn.Sequential(linear), "0")[0].weight
    close(model(x, tasks="a"), x @ (numbers + entries["layer.weight"].delta(dtype=torch.float64)).T)
    model = DTSModel(Reads(InBytes(linear)))
    model.load_task("a", entries)
    with pytest.raises(TypeError, match=r"codes of a quantised weight \(int8\) are no numbers"):
        model(x, tasks="a")


def test_codes_of_other_modules_are_refused_when_a_task_is_loaded(maker):
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.experts = nn.Parameter(torch.ones(2, 4, 4, dtype=torch.int8), requires_grad=False)

        def forward(self, x):
            return x * self.experts.sum()

    model = DTSModel(nn.Sequential(Scaled()))
    entry = Entry("0.experts", "0.experts", (2, 4, 4), "experts", factors=[maker.factors(4, 4), None])
    with pytest.raises(ValueError, match=r"the experts of Scaled is quantised \(int8 \[2, 4, 4\]\)"):
        model.load_task("a", {"0.experts": entry})
    assert model.tasks == [] and type(model.model[0]) is Scaled


@pytest.mark.parametrize("kind", LINEAR)
def test_a_state_dict_of_the_same_codes_is_no_other_base(kind, maker, recwarn):
    quantised, plain = net(LINEAR[kind])
    model = DTSModel(quantised)
    model.load_task("a", maker.entries(plain, skip=0, only="first"))
    model.load_state_dict(copy.deepcopy(model.state_dict()))
    assert not [w for w in recwarn if "other weights" in str(w.message)]
    other = copy.deepcopy(model.state_dict())
    for name in other:
        if name.startswith("first.") and other[name].dtype in (torch.int8, torch.uint8, torch.int32):
            other[name] = other[name] + 1
    if kind in ("bytes", "packed"):
        with pytest.warns(UserWarning, match="other weights were loaded into 'first'"):
            model.load_state_dict(other)


def test_quantised_after_tasks_were_loaded(maker, dense_twin):
    """As torchao's quantize_ does it: in place, under the tasks."""
    _, plain = net()
    entries = maker.entries(plain, skip=0)
    model = DTSModel(copy.deepcopy(plain))
    model.load_task("a", entries)
    for name in ("first", "last"):
        layer = model.model.get_submodule(name)
        layer.weight = in_class(plain.get_submodule(name)).weight
    ids = torch.arange(6).view(2, 3)
    close(model(ids, tasks="a"), dense_twin(plain, [(entries, 1.0)])(ids))
    with pytest.raises(ValueError, match="quantised weights: first.weight, last.weight"):
        model.merge_and_unload("a")


def test_kinds():
    quantised, plain = net(InWords, InTable)
    model = DTSModel(quantised)
    entries = {
        name: Entry(name, name, tuple(p.shape), "delta", tensor=torch.ones_like(p))
        for name, p in plain.named_parameters()
    }
    model.load_task("a", entries)
    found = {type(model.model.get_submodule(name)) for name in ("first", "last")}
    assert all(issubclass(kind, DTSQuantisedLinear) for kind in found)
    assert isinstance(model.model.table, DTSQuantisedEmbedding)
