"""Layers called with keywords, as their own class calls its input."""

import pytest
import torch
from each_row import check
from torch import nn

from dts.nn import DTSLinear, DTSModel


class Root(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(20))

    def forward(self, hidden_states):
        return self.weight * hidden_states / hidden_states.square().mean(-1, keepdim=True).sqrt()


class Conv1D(nn.Module):
    """GPT-2's linear layer."""

    def __init__(self):
        super().__init__()
        self.nf = 20
        self.weight, self.bias = nn.Parameter(torch.randn(20, 20)), nn.Parameter(torch.zeros(20))

    def forward(self, x):
        return x @ self.weight + self.bias


class Named(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.linear, self.norm = nn.Embedding(30, 20), nn.Linear(20, 20), nn.LayerNorm(20)
        self.conv, self.root, self.gpt = nn.Conv2d(1, 3, 3), Root(), Conv1D()
        self.attention = nn.MultiheadAttention(20, 2, batch_first=True)

    def forward(self, ids):
        x = self.gpt(x=self.root(hidden_states=self.norm(input=self.linear(input=self.words(input=ids)))))
        x, _ = self.attention(query=x, key=x, value=x, need_weights=False)
        return self.conv(input=x[:, None]).flatten(1)


def test_each_row_its_own_task(maker, dense_twin):
    ids = torch.randint(0, 30, (4, 6), generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    check(Named(), DTSLinear, maker, dense_twin, ids)
    check(Named(), DTSLinear, maker, dense_twin, ids.int())


@pytest.mark.parametrize("kind, name", [(Root, "hidden_states"), (Conv1D, "x")])
def test_another_keyword_is_an_error_that_names_the_right_one(kind, name, maker):
    model = DTSModel(nn.Sequential(kind().double()))
    model.load_task("a", maker.entries(model.model, skip=0))
    x = maker.randn(2, 20)
    torch.testing.assert_close(model.model[0](**{name: x}), model.model[0](x))
    for wrong in ({"inputs": x}, {name: x, "scale": x}, {}):
        with pytest.raises(TypeError, match=f"takes one input, {name}"):
            model.model[0](**wrong)
    with pytest.raises(TypeError):
        model.model[0](x, **{name: x})
    with pytest.raises(TypeError):
        model.model[0](x, scale=x)
