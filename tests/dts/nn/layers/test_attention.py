"""Attention of torch."""

import copy

import pytest
import torch
from each_row import check
from torch import nn

from dts.nn import DTSModel, DTSMultiheadAttention


@pytest.mark.parametrize(
    "options", [{}, dict(batch_first=True), dict(bias=False), dict(batch_first=True, kdim=8, vdim=8)], ids=str
)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("need_weights", [False, True])
def test_multihead_attention(options, masked, need_weights, maker, dense_twin):
    class BatchFirst(nn.Module):
        """The first axis of a model's inputs is the batch, whatever its layers use."""

        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, **options)

        def forward(self, *inputs, **kwargs):
            if self.attention.batch_first:
                return self.attention(*inputs, **kwargs)
            y, shares = self.attention(*(x.transpose(0, 1) for x in inputs), **kwargs)
            return y.transpose(0, 1), shares

    query, key, value = (maker.randn(4, length, 8, scale=1.0) for length in (3, 5, 5))
    mask = torch.ones(3, 5).triu(2).bool() if masked else None
    check(
        BatchFirst(),
        DTSMultiheadAttention,
        maker,
        dense_twin,
        query,
        key,
        value,
        need_weights=need_weights,
        attn_mask=mask,
    )


def test_self_attention_with_padding(maker, dense_twin):
    base = nn.MultiheadAttention(8, 2, batch_first=True).double()
    entries = maker.entries(base, skip=0)
    layer = DTSModel(copy.deepcopy(base))
    layer.load_task("a", entries)
    x = maker.randn(2, 4, 8, scale=1.0)
    padding = torch.tensor([[False, False, True, True], [False, False, False, True]])
    found, shares = layer(x, x, x, key_padding_mask=padding, tasks="a")
    expected, expected_shares = dense_twin(base, [(entries, 1.0)])(x, x, x, key_padding_mask=padding)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(shares, expected_shares, rtol=1e-9, atol=1e-9)


def test_transformer_encoder_takes_no_shortcut(maker, dense_twin):
    """torch's fused encoder reads the weights of its layers; with tasks it must not, and unloaded it may again."""
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2)
    base = copy.deepcopy(encoder)
    with torch.no_grad():
        model = check(encoder, DTSMultiheadAttention, maker, dense_twin, maker.randn(4, 5, 8, scale=1.0))
    assert model.model.layers[0].activation_relu_or_gelu == base.layers[0].activation_relu_or_gelu == 1


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True), 2),
        lambda: nn.MultiheadAttention(16, 2, batch_first=True),
    ],
)
def test_attention_under_autocast_is_close_to_float32(make, maker):
    """fp32 weights whose base product comes back in bf16: it is that dtype's answer, and the process lives."""
    torch.manual_seed(0)
    base = make().eval().float()
    model = DTSModel(base)
    model.load_task("a", maker.entries(base, skip=0))
    model.set_task("a")
    x = torch.randn(3, 5, 16)
    inputs = (x, x, x) if isinstance(base, nn.MultiheadAttention) else (x,)
    first = lambda out: out[0] if isinstance(out, tuple) else out  # noqa: E731
    with torch.no_grad():
        want = first(model(*inputs))
        with torch.autocast("cpu", torch.bfloat16):
            got = first(model(*inputs))
    assert got.isfinite().all() and (got.float() - want).norm() < 0.05 * want.norm()
