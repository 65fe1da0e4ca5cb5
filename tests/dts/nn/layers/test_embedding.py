"""Embeddings."""

import pytest
import torch
from each_row import TASKS, check
from torch import nn

from dts.nn import DTSEmbedding, DTSModel
from dts.nn.deltas import Piece


@pytest.mark.parametrize("shape", [(4,), (4, 6), (4, 2, 3)])
def test_embedding(shape, maker, dense_twin):
    ids = torch.randint(0, 11, shape)
    check(nn.Embedding(11, 6, padding_idx=0), DTSEmbedding, maker, dense_twin, ids)


def test_embedding_of_a_small_raw_delta(maker):
    base = nn.Embedding(5, 6).double()
    layer = DTSEmbedding.from_embedding(base)
    delta = maker.randn(5, 6)
    layer.load(0, {"weight": [Piece("raw", delta)]})
    layer.dts.state.set([{0: 2.0}, {}])
    ids = torch.tensor([[1, 2], [1, 2]])
    expected = base.weight[ids] + torch.stack([2 * delta[ids[0]], torch.zeros(2, 6)])
    torch.testing.assert_close(layer(ids), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.uint8])
def test_embedding_of_narrow_ids(dtype, maker):
    base = nn.Embedding(11, 6).double()
    model = DTSModel(base)
    for task in "ab":
        model.load_task(task, maker.entries(base, skip=0))
    ids = torch.randint(0, 11, (4, 5))
    for tasks in ("a", TASKS):
        torch.testing.assert_close(model(ids.to(dtype), tasks=tasks), model(ids, tasks=tasks), rtol=0, atol=0)
