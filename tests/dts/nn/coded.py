"""Layers whose weights are codes, each stored as some library stores them, and the plain model each stands for."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.utils._pytree import tree_map_only

STEP = 1 / 16


def codes(weight: torch.Tensor) -> torch.Tensor:
    return (weight.detach() / STEP).round().clamp(-128, 127).to(torch.int8)


class InBytes(nn.Module):
    """As bitsandbytes' 8-bit layers: a ``weight`` of int8, of its own shape or (packed) of another."""

    def __init__(self, linear: nn.Linear, packed: bool = False):
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        weight = codes(linear.weight)
        self.weight = nn.Parameter(weight.view(torch.uint8).reshape(-1, 1) if packed else weight, requires_grad=False)
        self.bias = None if linear.bias is None else nn.Parameter(linear.bias.detach().clone())

    def forward(self, x):
        weight = self.weight.view(torch.int8).view(self.out_features, self.in_features).to(x.dtype)
        return nn.functional.linear(x, weight * STEP, self.bias)


class Where:
    """What a library keeps of a layer in an object: the codes of bitsandbytes' 8-bit layers, how its 4-bit ones lie."""

    codes, turned = None, False


class MovedAtFirst(InBytes):
    """As bitsandbytes' 8-bit layers: the first call takes the codes off the parameter, into an object of the layer."""

    def __init__(self, linear: nn.Linear):
        super().__init__(linear)
        self.state, self.weight.codes = Where(), self.weight.data

    def forward(self, x):
        if self.weight.codes is not None:
            self.state.codes, self.weight.codes = self.weight.codes, None
        return nn.functional.linear(x, self.state.codes.to(x.dtype) * STEP, self.bias)


class PackedAtFirst(InBytes):
    """As bitsandbytes' 4-bit layers on some processors: the first call packs the codes anew and notes it."""

    def __init__(self, linear: nn.Linear):
        super().__init__(linear)
        self.state = self.weight.state = Where()

    def forward(self, x):
        if not self.state.turned:
            self.weight.data, self.state.turned = self.weight.data.flip(0).contiguous(), True
        return nn.functional.linear(x, self.weight.flip(0).to(x.dtype) * STEP, self.bias)


class InWords(nn.Module):
    """As GPTQ's and AWQ's layers: no ``weight``, but words of int32 with scales, and a bias that is a buffer."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.register_buffer("qweight", codes(linear.weight).T.contiguous().to(torch.int32))
        self.register_buffer("scales", torch.full((1, linear.out_features), STEP, dtype=linear.weight.dtype))
        self.register_buffer("g_idx", torch.zeros(linear.in_features, dtype=torch.int32))
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach().clone())

    def forward(self, x):
        y = x @ (self.qweight.to(x.dtype) * self.scales)
        return y if self.bias is None else y + self.bias


class OfConv1D(InBytes):
    """As transformers makes of GPT-2's layers: a linear layer that knows what it took the place of."""

    def __init__(self, conv1d: nn.Module):
        linear = nn.Linear(*conv1d.weight.shape, dtype=conv1d.weight.dtype)
        linear.weight.data, linear.bias.data = conv1d.weight.detach().T, conv1d.bias.detach()
        super().__init__(linear)
        self.source_cls = type(conv1d)


class InTable(nn.Embedding):
    """As bitsandbytes' embeddings: codes in another shape, and a forward that reads them."""

    def __init__(self, embedding: nn.Embedding):
        super().__init__(*embedding.weight.shape)
        self.weight = nn.Parameter(codes(embedding.weight).reshape(-1, 1), requires_grad=False)
        self.dtype = embedding.weight.dtype

    def forward(self, ids):
        return self.weight.view(self.num_embeddings, -1)[ids].to(self.dtype) * STEP


class Coded(torch.Tensor):
    """As torchao's tensors: looks like the floating-point weight, and computes with what its codes stand for."""

    @staticmethod
    def __new__(cls, held: torch.Tensor, dtype: torch.dtype):
        made = torch.Tensor._make_wrapper_subclass(cls, held.shape, dtype=dtype)
        made.held = held
        return made

    def dequantize(self) -> torch.Tensor:
        return self.held.to(self.dtype) * STEP

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        if function in (torch.ops.aten.detach.default, torch.ops.aten.clone.default):
            return Coded(args[0].held.clone(), args[0].dtype)
        if function is torch.ops.aten.equal.default:
            raise NotImplementedError("as torchao's")
        return function(*tree_map_only(Coded, Coded.dequantize, args), **(kwargs or {}))


def in_class(module: nn.Module) -> nn.Module:
    made = copy.deepcopy(module)
    made.weight = nn.Parameter(Coded(codes(module.weight), module.weight.dtype), requires_grad=False)
    return made


def rounded(model: nn.Module, *names: str) -> nn.Module:
    """The plain model that the quantised one stands for: these modules' weights as their codes have them."""
    made = copy.deepcopy(model)
    for name in names:
        weight = made.get_submodule(name).weight
        weight.data = codes(weight).to(weight.dtype) * STEP
    return made
