"""A whole model's answer to a row has the same bits whatever else is in the batch: other rows, other tasks."""

import random

import pytest
import torch
from torch import nn
from torch.nn import functional

from dts.nn import DTSModel

VOCABULARY, WIDTH, LENGTH = 50, 48, 7
TRIALS = 40


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.q, self.k, self.v, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x):
        y = self.first(x)
        heads = (f(y).unflatten(-1, (4, -1)).transpose(1, 2) for f in (self.q, self.k, self.v))
        x = x + self.out(functional.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2))
        return x + self.down(functional.gelu(self.up(self.second(x))))


class Small(nn.Module):
    """The parts of a transformer, made for batches of ids [rows, LENGTH]."""

    def __init__(self):
        super().__init__()
        self.embed, self.norm = nn.Embedding(VOCABULARY, WIDTH), nn.LayerNorm(WIDTH)
        self.blocks, self.head = nn.Sequential(Block(), Block()), nn.Linear(WIDTH, VOCABULARY)

    def forward(self, ids):
        return self.head(self.norm(self.blocks(self.embed(ids))))


def differing(answer, tasks) -> int:
    """Batches, of TRIALS of each size, in which the row that is the same in all of them has other bits."""
    draw, generator, count = random.Random(0), torch.Generator().manual_seed(0), 0
    for rows in (2, 5, 8, 33):
        own, ids = rows // 2, torch.randint(VOCABULARY, (rows, LENGTH), generator=generator)
        for task in tasks:
            first = None
            for _ in range(TRIALS // len(tasks)):
                batch, use = torch.randint(VOCABULARY, ids.shape, generator=generator), draw.choices(tasks, k=rows)
                batch[own], use[own] = ids[own], task
                got = answer(batch, use)[own]
                first = got if first is None else first
                count += not torch.equal(got, first)
    return count


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@torch.no_grad()
def test_no_row_differs(maker, dtype):
    torch.manual_seed(0)
    base = Small().to(dtype).eval()
    if differing(lambda ids, tasks: base(ids), [None]):
        pytest.skip("rows of the base itself differ here with their neighbours")
    entries = {name: maker.entries(base, skip=0.2) for name in "abc"}
    model = DTSModel(base)
    for name, own in entries.items():
        model.load_task(name, own)
    answer = lambda ids, tasks: model(ids, tasks=tasks)  # noqa: E731
    assert differing(answer, ["a", "b", "c", None]) == 0
    ids = torch.zeros(2, LENGTH, dtype=torch.int64)
    assert not torch.equal(answer(ids, ["a", "b"])[0], answer(ids, ["b", "a"])[0])  # a task does something
