"""Stacks and convolutions of real architectures, told apart by what their own modules are."""

import pytest
import torch
from torch import nn

from dts.shapes import is_of_tokens, is_stack

transformers = pytest.importorskip("transformers")

SMALL = dict(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=2,
)
EXPERTS = {
    "jetmoe": dict(
        num_local_experts=4,
        num_experts_per_tok=2,
        kv_channels=16,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_key_value_heads=1,
        vocab_size=64,
    ),
    "mixtral": SMALL | dict(num_local_experts=4),
    "gpt_oss": SMALL | dict(num_local_experts=4, head_dim=16),
    "qwen3_moe": SMALL | dict(num_experts=4, moe_intermediate_size=32),
    "granitemoe": SMALL | dict(num_local_experts=4),
    "llama4_text": SMALL | dict(num_local_experts=4, intermediate_size_mlp=64, head_dim=16),
}
CONVOLUTIONS = {
    "whisper": dict(
        d_model=32,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        vocab_size=64,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
    ),
    "wav2vec2": dict(
        conv_dim=(32, 32),
        conv_kernel=(10, 3),
        conv_stride=(5, 2),
        hidden_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
    ),
    "mamba": dict(hidden_size=32, num_hidden_layers=1, vocab_size=64, state_size=8),
    "xlnet": dict(d_model=32, n_layer=1, n_head=4, d_inner=64, vocab_size=64),
}


def three_dimensional(kind: str, options: dict):
    config = transformers.CONFIG_MAPPING[kind](**options)
    model = transformers.AutoModel.from_config(config)
    return {name: tuple(p.shape) for name, p in model.named_parameters() if p.dim() == 3}, model


@pytest.mark.parametrize("kind", EXPERTS)
def test_experts_are_stacks_whatever_their_name(kind):
    shapes, _ = three_dimensional(kind, EXPERTS[kind])
    assert len(shapes) >= 2
    for name, shape in shapes.items():
        assert is_stack(name, shape) and is_stack("weight", shape), name


@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_convolutions_and_projections_to_heads_are_matrices(kind):
    shapes, model = three_dimensional(kind, CONVOLUTIONS[kind])
    wide = {name: shape for name, shape in shapes.items() if shape[0] > 2}  # embeddings of 2 segments, a scale
    assert wide
    for name, shape in wide.items():
        assert not is_stack(name, shape), name


@pytest.mark.parametrize(
    "name, shape, stack",
    [
        ("mlp.input_linear.weight", (8, 11264, 2048), True),
        ("experts.gate_up_proj", (512, 1024, 2048), True),
        ("experts.down_proj", (512, 2048, 512), True),
        ("experts.down_proj", (768, 4096, 256), True),
        ("rg_lru.input_gate_weight", (10, 256, 256), True),
        ("position_embeddings", (1, 197, 768), True),
        ("conv.weight", (512, 512, 3), False),
        ("experts.3.conv.weight", (512, 512, 3), False),
        ("conv1d.weight", (1536, 1, 4), False),
        ("pos_conv_embed.weight", (768, 48, 128), False),
        ("rel_attn.q", (1024, 16, 64), False),
        ("relative_attention", (64, 8, 32), False),
        ("query.weight", (768, 192, 1), False),
        ("upsampler.0.weight", (512, 256, 11), False),
        ("patch_embed.weight", (768, 3, 16, 16), False),
        ("experts", (4, 2, 64, 64), False),
        ("weight", (64, 64), False),
    ],
)
def test_shapes_of_published_models(name, shape, stack):
    assert is_stack(name, shape) == stack


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv1d(32, 48, 9),
        nn.Conv1d(32, 32, 5, groups=32),
        nn.ConvTranspose1d(64, 32, 11),
    ],
)
def test_every_convolution_of_torch(conv):
    assert not is_stack("expert.weight", tuple(conv.weight.shape))


def test_a_stack_without_the_word_is_compressed_by_matrix_and_merged_by_matrix():
    from dts.adapter import compress
    from dts.merge.tensor import TensorInfo

    generator = torch.Generator().manual_seed(0)
    base = {"block.input_linear.weight": torch.randn(4, 48, 40, generator=generator)}
    low = torch.randn(4, 48, 3, generator=generator) @ torch.randn(4, 3, 40, generator=generator)
    tuned = {name: value + 0.01 * low for name, value in base.items()}
    adapter = compress(base, tuned, rank_fraction=0.1, method="residual")
    entry = adapter.entries["block.input_linear.weight"]
    assert entry.kind == "experts" and len(entry.factors) == 4
    assert adapter.verify(base, tuned).ok
    assert TensorInfo("block.input_linear.weight").matrices((4, 48, 40))
    assert not TensorInfo("conv.weight").matrices((512, 512, 3))


def test_an_adapter_that_took_a_stack_for_one_matrix_still_loads(tmp_path, monkeypatch):
    from dts.adapter import Adapter, compress, plan

    generator = torch.Generator().manual_seed(0)
    base = {"input_linear.weight": torch.randn(20, 24, 32, generator=generator)}
    tuned = {name: value + 0.01 * torch.randn(value.shape, generator=generator) for name, value in base.items()}
    with monkeypatch.context() as before:
        before.setattr(plan, "is_stack", lambda name, shape: False)
        compress(base, tuned, tmp_path / "old", rank_fraction=0.2)
    old = Adapter.load(tmp_path / "old")
    assert old.entries["input_linear.weight"].kind == "factors"
    assert old.verify(base, tuned).ok
    assert dict(old.apply(base))["input_linear.weight"].shape == (20, 24, 32)


@pytest.mark.parametrize(
    ("name", "shape", "tokens"),
    [
        ("model.embed_tokens.weight", (49152, 576), True),
        ("lm_head.weight", (32000, 5120), True),  # Llama 2, 13 B
        ("transformer.wte.weight", (50257, 768), True),
        ("wte.weight", (250, 8), False),  # too small to tell
        ("model.layers.0.self_attn.kv_b_proj.weight", (32768, 512), False),  # DeepSeek: in a block
        ("model.layers.3.mlp.gate_up_proj.weight", (27392, 4096), False),
        ("embeddings.position_embeddings.weight", (512, 384), False),
        ("patch_embed.proj.weight", (768, 3, 16, 16), False),
        ("norm.weight", (4096,), False),
    ],
)
def test_a_table_of_tokens_is_tall_and_in_no_block(name, shape, tokens):
    assert is_of_tokens(name, shape) is tokens
