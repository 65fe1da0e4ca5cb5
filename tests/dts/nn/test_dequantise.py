"""Merging into a quantised base: refused, or into the numbers its codes stand for."""

import copy
from functools import partial

import pytest
import torch
from coded import InBytes, InTable, InWords, OfConv1D, in_class, rounded
from torch import nn

from dts.nn import DTSModel
from dts.nn.dequantise import dequantise, quantised_weights

LINEAR = {"bytes": InBytes, "words": InWords, "class": in_class}
close = partial(torch.testing.assert_close, rtol=1e-6, atol=1e-6)


def net(kind: str) -> tuple[nn.Sequential, nn.Sequential]:
    torch.manual_seed(0)
    base = nn.Sequential(nn.Embedding(11, 8), nn.Linear(8, 6), nn.Linear(6, 5, bias=False)).double()
    table = in_class if kind == "class" else InTable
    quantised = nn.Sequential(table(base[0]), LINEAR[kind](base[1]), LINEAR[kind](base[2]))
    return quantised, rounded(base, "0", "1", "2")


@pytest.mark.parametrize("kind", LINEAR)
def test_a_task_is_written_into_the_numbers(kind, maker, dense_twin):
    quantised, plain = net(kind)
    entries = maker.entries(plain, skip=0)
    model = DTSModel(quantised)
    model.load_task("a", entries)
    layers = dict(quantised.named_children())
    ids = torch.arange(6).view(2, 3)
    with pytest.raises(ValueError, match=r"cannot write into quantised weights: 0.weight, 1.weight, 2.weight") as error:
        model.merge_and_unload("a")
    assert "merge_and_unload(task, dequantise=True)" in str(error.value)
    close(model(ids, tasks="a"), dense_twin(plain, [(entries, 1.0)])(ids))  # as it was
    merged = model.merge_and_unload("a", dequantise=True).double()
    assert [type(m) for m in merged] == [nn.Embedding, nn.Linear, nn.Linear]
    assert all(merged[int(name)] is layer for name, layer in layers.items())  # whoever holds a layer has it still
    assert merged.state_dict().keys() == plain.state_dict().keys() and not quantised_weights(merged)
    close(merged(ids), dense_twin(plain, [(entries, 1.0)])(ids))
    assert merged[1].in_features == 8 and merged[1].out_features == 6


def test_a_task_that_changes_nothing_quantised_is_merged_as_ever(maker, dense_twin):
    quantised, plain = net("bytes")
    quantised.append(nn.LayerNorm(5).double())
    plain.append(nn.LayerNorm(5).double())
    entries = maker.entries(plain, skip=0, only="3.")
    model = DTSModel(quantised)
    model.load_task("a", entries)
    merged = model.merge_and_unload("a")
    ids = torch.arange(6).view(2, 3)
    assert isinstance(merged[1], InBytes)
    close(merged(ids), dense_twin(plain, [(entries, 1.0)])(ids))


def test_hooks_stay():
    quantised, plain = net("words")
    seen = []
    quantised[1].register_forward_hook(lambda module, args, output: seen.append(module))
    assert dequantise(quantised) == ["0.weight", "1.weight", "2.weight"]
    close(quantised.double()(torch.arange(3)), plain(torch.arange(3)))
    assert seen == [quantised[1]] and quantised_weights(quantised) == []


def test_a_layer_of_gpt2_becomes_what_it_was(maker):
    pytest.importorskip("transformers")
    from transformers.pytorch_utils import Conv1D

    torch.manual_seed(0)
    base = nn.Sequential(Conv1D(6, 8)).double()
    base[0].weight.data *= 20
    entries = maker.entries(base, skip=0)
    model = DTSModel(nn.Sequential(OfConv1D(base[0])))
    model.load_task("a", entries)
    merged = model.merge_and_unload("a", dequantise=True).double()
    assert type(merged[0]) is Conv1D and merged[0].weight.shape == (8, 6)
    plain = rounded(base, "0")
    for name, entry in entries.items():
        plain.get_parameter(name).data += entry.delta(dtype=torch.float64)
    x = maker.randn(2, 8, scale=1.0)
    close(merged(x), plain(x))


def test_what_cannot_be_dequantised():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.codes = nn.Parameter(torch.ones(3, dtype=torch.int8), requires_grad=False)

    model = nn.Sequential(Odd(), InBytes(nn.Linear(4, 4)))
    before = copy.deepcopy(model)
    with pytest.raises(ValueError, match=r"^0.codes: only linear layers and embeddings"):
        dequantise(model)
    assert [type(m) for m in model] == [type(m) for m in before]
