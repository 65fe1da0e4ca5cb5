"""Tiny transformers models on disk: a base and a full fine-tune of it, and adapters of them."""

import copy
from pathlib import Path

import pytest
import torch

import dts

transformers = pytest.importorskip("transformers")

TEXT = dict(vocab_size=60, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2)
DECODER = dict(**TEXT, num_key_value_heads=1, bos_token_id=1, eos_token_id=2, pad_token_id=0)
IMAGE = dict(
    hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, image_size=16, patch_size=4
)
GPT2 = dict(vocab_size=60, n_embd=32, n_layer=2, n_head=2, n_positions=32, bos_token_id=1, eos_token_id=2)
OPT = dict(hidden_size=32, word_embed_proj_dim=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=2)
OPT |= dict(vocab_size=60, max_position_embeddings=32, bos_token_id=1, eos_token_id=2)
NGRAM = dict(
    vocab_size=60, hidden_size=32, encoder_ffn_dim=48, decoder_ffn_dim=48, num_buckets=8, relative_max_distance=16
)
NGRAM |= {f"num_{side}_{what}": 2 for side in ("encoder", "decoder") for what in ("layers", "attention_heads")}
DENSE = DECODER | dict(num_experts=4, mlp_only_layers=[0, 1])  # of a family of experts, and has none
MODELS = {
    "bert": ("BertModel", "BertForSequenceClassification", "BertConfig", TEXT, dict(num_labels=3)),
    "vit": ("ViTModel", "ViTForImageClassification", "ViTConfig", IMAGE, dict(num_labels=3)),
    "gpt2": ("GPT2LMHeadModel", "GPT2LMHeadModel", "GPT2Config", GPT2, {}),
    "llama": ("LlamaForCausalLM", "LlamaForCausalLM", "LlamaConfig", DECODER, {}),
    "qwen2": ("Qwen2ForCausalLM", "Qwen2ForCausalLM", "Qwen2Config", DECODER | dict(tie_word_embeddings=True), {}),
    "opt": ("OPTForCausalLM", "OPTForCausalLM", "OPTConfig", OPT, {}),
    "qwen3_moe": ("Qwen3MoeForCausalLM", "Qwen3MoeForCausalLM", "Qwen3MoeConfig", DENSE, {}),
    "prophetnet": (
        "ProphetNetForConditionalGeneration",
        "ProphetNetForConditionalGeneration",
        "ProphetNetConfig",
        NGRAM,
        {},
    ),
    "mixtral": ("MixtralForCausalLM", "MixtralForCausalLM", "MixtralConfig", DECODER | dict(num_local_experts=4), {}),
}


def inputs(name: str, rows: int = 3) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(1)
    if name == "vit":
        return {"pixel_values": torch.randn(rows, 3, 16, 16, generator=draw)}
    ids = torch.randint(3, 60, (rows, 7), generator=draw)
    more = {"decoder_input_ids": ids.flip(1)} if name == "prophetnet" else {}
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), **more}


def base_of(folder: Path, name: str):
    """The base in the class of its fine-tunes, as a user of another library loads it."""
    _, tuned, _, _, labels = MODELS[name]
    return getattr(transformers, tuned).from_pretrained(folder / name / "base", **labels).eval()


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """``made("bert")`` -> a folder with ``base``, ``tuned`` and the adapter ``adapter`` of components alone."""
    folder, done = tmp_path_factory.mktemp("exports"), set()

    def make(name: str) -> Path:
        if name in done:
            return folder / name
        torch.manual_seed(0)
        plain, tuned, config, options, labels = MODELS[name]
        base = getattr(transformers, plain)(getattr(transformers, config)(**options))
        draw = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for parameter in base.parameters():
                parameter += 0.1 * torch.randn(parameter.shape, generator=draw)
        base.save_pretrained(folder / name / "base")
        model = getattr(transformers, tuned)(getattr(transformers, config)(**options, **labels))
        own = base if plain == tuned else getattr(model, model.base_model_prefix)
        if own is base:
            model = copy.deepcopy(base)
        else:
            own.load_state_dict(base.state_dict(), strict=False)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.05 * torch.randn(parameter.shape, generator=draw)
        model.save_pretrained(folder / name / "tuned")
        dts.compress(
            folder / name / "base",
            folder / name / "tuned",
            folder / name / "adapter",
            method="residual",
            rank_fraction=0.4,
        )
        done.add(name)
        return folder / name

    return make
