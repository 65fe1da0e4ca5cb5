"""Which layers the code of other modules reads, so that no layer of another library may stand around them."""

import torch
from torch import nn

from dts.exports.reads import reads


def scaled(layer, x):
    return x * layer.weight.sum()


class Inner(nn.Module):
    def __init__(self):
        super().__init__()
        self.called, self.shown, self.lent, self.listed = (nn.Linear(4, 4) for _ in range(4))

    def forward(self, x, table):
        x = self.called(x.to(self.called.weight.dtype)) + table.weight[0]
        if self.called.bias is not None:
            x = x[: self.called.weight.shape[0]]
        return scaled(self.lent, self.shown(x))


class Outer(nn.Module):
    """read: each in another way;  the rest is called, or only in another setting or in training read."""

    def __init__(self, slow: bool):
        super().__init__()
        self.slow = slow
        self.inner, self.blocks = Inner(), nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
        self.table, self.pair, self.flat = nn.Embedding(4, 4), nn.Linear(4, 4), nn.Conv2d(1, 1, 1)
        self.sometimes, self.trained, self.open = (nn.Linear(4, 4) for _ in range(3))

    def forward(self, x):
        for i, block in enumerate(self.blocks[1:]):
            x = x @ block.weight + i
        if self.slow:
            x = x @ self.sometimes.weight
        if self.training and x.ndim:
            x = x @ self.trained.weight
        if x.is_cuda:
            x = x @ self.open.weight
        weight = getattr(self.pair, "weight") if self.slow or x.ndim else None  # noqa: B009
        return self.again(self.inner(x, table=self.table)) + self.flat.stride[0] + weight

    def again(self, x):
        self.inner.other, x.other = self.sometimes, self.trained
        x.bias = x.weight
        return self.sometimes(self.trained(self.open(x))) + self.inner.listed.bias


def read(model):
    found, names = reads(model), {module: name for name, module in model.named_modules()}
    assert not found.unseen
    return {names[module]: where for module, where in found.by.items()}


def test_what_is_read_past_a_call():
    rest = {"table": "Inner.forward", "pair": "Outer.forward", "flat": "Outer.forward", "open": "Outer.forward"}
    rest |= {"inner.lent": "scaled", "inner.listed": "Outer.again"}
    rest |= {f"blocks.{i}": "Outer.forward" for i in range(3)}  # of a slice all are meant
    assert read(Outer(False)) == rest
    assert read(Outer(True)) == rest | {"sometimes": "Outer.forward"}


def test_a_fast_path_of_torch_reads_its_layers():
    assert {"linear1", "linear2", "self_attn.out_proj"} <= read(nn.TransformerEncoderLayer(8, 2, 16)).keys()


def test_code_without_a_source_is_named():
    made: dict = {}
    exec("def forward(self, x):\n    return x @ self.inner.weight", made)
    model = type("Made", (nn.Module,), made)()
    model.inner = nn.Linear(4, 4)
    assert reads(model).unseen == {"Made.forward"} and torch.is_tensor(model(torch.ones(1, 4)))
