"""A model of the tensors of `tests.dts.adapter.tiny`, to load altered adapters into."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.dts.adapter import tiny


class Norm(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(18))

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, (18,), self.weight)


class Mlp(nn.Module):
    def __init__(self):
        super().__init__()
        self.experts = nn.Parameter(torch.zeros(2, 18, 20))

    def forward(self, x: Tensor) -> Tensor:
        """x [rows, 20] -> [rows, 18], the sum of two experts."""
        return F.linear(x, self.experts[0]) + F.linear(x, self.experts[1])


class Tiny(nn.Module):
    """Its ``steps`` buffer has no part in the outputs; its head is the base's where a task brings none."""

    def __init__(self):
        super().__init__()
        self.body, self.norm, self.mlp = nn.Sequential(nn.Linear(24, 20)), Norm(), Mlp()
        self.conv = nn.Conv2d(2, 18, 3, bias=False)
        self.embed, self.lm_head = nn.Embedding(40, 18), nn.Linear(18, 40, bias=False)
        self.head = nn.Linear(20, 3)
        self.register_buffer("steps", torch.zeros(4, dtype=torch.int64))
        self.load_state_dict(tiny.base(), strict=False)
        self.lm_head.weight = self.embed.weight  # as in the fine-tunes

    def forward(self, x: Tensor, ids: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        """x [rows, 24], ids [rows] below 40, image [rows, 2, 3, 3] -> ([rows, words], [rows, classes])."""
        inner = self.body(x)
        mixed = self.norm(self.embed(ids) + self.conv(image).flatten(1) + self.mlp(inner))
        return self.lm_head(mixed), self.head(inner)


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    return (torch.randn(2, 24, generator=draw), torch.tensor([0, 39]), torch.randn(2, 2, 3, 3, generator=draw))
