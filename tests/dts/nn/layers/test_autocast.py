"""bfloat16 around a model in float32."""

import pytest
import torch
from each_row import TASKS
from torch import nn

from dts.nn import DTSModel


@pytest.mark.parametrize("name", ["conv", "attention", "encoder", "embedding", "norms"])
def test_autocast_around_a_model(name, maker):
    """bfloat16 where torch takes it, next to the model in float32."""
    image, x = torch.randn(4, 3, 8, 8), torch.randn(4, 5, 8)
    net, given = {
        "conv": (nn.Conv2d(3, 5, 3), image),
        "attention": (nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0).self_attn, x),
        "encoder": (nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2), x),
        "embedding": (nn.Sequential(nn.Embedding(9, 8), nn.Linear(8, 8)), torch.randint(0, 9, (4, 5))),
        "norms": (nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8), nn.RMSNorm(8)), x),
    }[name]
    model = DTSModel(net.eval())
    for task in "ab":
        model.load_task(task, maker.entries(net, skip=0))
    arguments = (given,) * 3 if name == "attention" else (given,)
    first = lambda y: (y[0] if isinstance(y, tuple) else y).float()  # noqa: E731
    with torch.no_grad():
        for tasks in ("a", TASKS):
            want = first(model(*arguments, tasks=tasks))
            with torch.autocast("cpu", torch.bfloat16):
                found = first(model(*arguments, tasks=tasks))
            torch.testing.assert_close(found, want, rtol=0.05, atol=0.05 * want.abs().max().item())
