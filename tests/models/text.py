"""Families that read or write text."""

from __future__ import annotations

from typing import Any

from transformers.models.auto import modeling_auto as auto

from tests.models import batches
from tests.models.families import families
from tests.models.row import Row

ROWS: list[Row] = []

SSM = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 16, "mamba_chunk_size": 8}
MAMBA2 = {"mamba_num_heads": 8, "mamba_head_dim": 8, "ssm_state_size": 16, "n_groups": 2, "chunk_size": 8}
DELTA = {"linear_num_key_heads": 2, "linear_num_value_heads": 4}
HYBRID = {"attention_hidden_size": 64, "attention_head_dim": 16}
CLASSES = {"num_labels": 3}
GENERATES = batches.prompt, batches.prompt
TRANSLATES = batches.pair, batches.text


def add(*args: Any, **given: Any) -> None:
    ROWS.extend(families(*args, **given))


section, kinds = "Encoders of text", auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES
add(section, "bert roberta xlm-roberta albert electra distilbert deberta deberta-v2", kinds, batches.text, **CLASSES)
add(section, "mpnet ernie modernbert eurobert funnel fnet ibert", kinds, batches.text, **CLASSES)
add(section, "megatron-bert nystromformer rembert roc_bert roformer", kinds, batches.text, **CLASSES)
add(section, "squeezebert xlm yoso convbert luke", kinds, batches.text, **CLASSES)
add(section, "xlnet", kinds, batches.text, **CLASSES, d_head=8, use_mems_eval=False)
add(section, "xmod", kinds, batches.text, **CLASSES, default_language="en_XX")
add(section, "canine", kinds, batches.text, **CLASSES)
add(section, "esm", kinds, batches.text, **CLASSES, vocab_size=96, pad_token_id=0, mask_token_id=4)
add(section, "lilt", kinds, batches.layout, **CLASSES, hidden_size=48)
add(section, "layoutlm", kinds, batches.layout, **CLASSES)
add(section, "mobilebert", kinds, batches.text, **CLASSES, embedding_size=32, intra_bottleneck_size=32)
add(section, "longformer big_bird nomic_bert", kinds, batches.text, **CLASSES)

section, kinds = "Decoders", auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
add(section, "gpt2 gpt_neox gptj gpt_bigcode opt bloom llama", kinds, *GENERATES)
add(section, "mistral qwen2 qwen3 gemma gemma2 gemma3_text phi phi3", kinds, *GENERATES)
add(section, "falcon mpt stablelm starcoder2 cohere cohere2 olmo2 granite", kinds, *GENERATES)
add(section, "glm glm4 smollm3 persimmon codegen ctrl biogpt xglm", kinds, *GENERATES)
add(section, "openai-gpt exaone4 diffllama helium", kinds, *GENERATES)
add(section, "gpt_neo", kinds, *GENERATES, attention_types=[[["global", "local"], 1]])
add(section, "nemotron", kinds, *GENERATES, head_dim=8, num_key_value_heads=2)

section = "State-space and hybrid models"
add(section, "rwkv", kinds, batches.prompt, batches.prompt_again, rescale_every=0)
add(
    section,
    "rwkv",
    kinds,
    batches.prompt,
    rescale_every=1,
    what="rescaled",
    fails="its forward divides weights of the base in place, which is refused: load it with rescale_every=0",
)
add(section, "recurrent_gemma", kinds, *GENERATES, num_hidden_layers=3)
add(section, "mamba falcon_mamba lfm2 olmo_hybrid minimax", kinds, *GENERATES)
add(section, "mamba2", kinds, *GENERATES, num_heads=8, head_dim=8, n_groups=2, state_size=16)
add(
    section,
    "kimi_linear",
    kinds,
    *GENERATES,
    layer_types=["linear_attention", "full_attention"],
    num_key_value_heads=4,
    num_local_experts=4,
    num_experts_per_tok=2,
    n_group=2,
)
add(section, "jamba", kinds, *GENERATES, attn_layer_period=2, attn_layer_offset=1)
add(section, "qwen3_next", kinds, *GENERATES, layer_types=["linear_attention", "full_attention"], **DELTA)
add(section, "bamba", kinds, *GENERATES, attn_layer_indices=[1], **SSM)
add(section, "falcon_h1", kinds, *GENERATES, mamba_d_ssm=64, **SSM)
add(section, "granitemoehybrid", kinds, *GENERATES, layer_types=["mamba", "attention"], **SSM)
add(section, "zamba", kinds, *GENERATES, layers_block_type=["mamba", "hybrid", "hybrid"], num_hidden_layers=3, **HYBRID)
add(
    section,
    "zamba2",
    kinds,
    *GENERATES,
    layers_block_type=["mamba", "hybrid"],
    n_mamba_heads=8,
    mamba_headdim=8,
    num_key_value_heads=4,
    **HYBRID,
)
add(section, "nemotron_h", kinds, *GENERATES, layers_block_type=["mamba", "attention", "moe"], **MAMBA2)

section = "Mixtures of Experts"
add(section, "mixtral qwen2_moe qwen3_moe olmoe phimoe", kinds, *GENERATES)
add(section, "granitemoe gpt_oss jetmoe ernie4_5_moe glm4_moe", kinds, *GENERATES)
add(section, "deepseek_v3", kinds, *GENERATES, num_key_value_heads=4, n_group=2, topk_group=1)
add(section, "llama4_text", kinds, *GENERATES)

section, kinds = "Encoder-decoders", auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES
add(section, "t5 mt5 umt5 longt5 bart mbart pegasus blenderbot", kinds, *TRANSLATES)
add(section, "m2m_100 marian prophetnet plbart fsmt bigbird_pegasus", kinds, *TRANSLATES)
add(section, "led", kinds, *TRANSLATES, attention_window=8, max_encoder_position_embeddings=64)
add(section, "t5gemma encoder-decoder switch_transformers nllb-moe", kinds, *TRANSLATES)
