"""Tiny configs by mechanism: the config of a family with every size that it names made small."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

VOCABULARY = 96
_SIZES = [  # the first pattern that is the whole name, and the largest value then
    (r"(.*_)?vocab_size(_.*)?", VOCABULARY),
    (r"(.*_)?(num|n)_(key_value|kv)_heads|n_head_kv|multi_query_group_num|num_key_value_heads_.*", 2),
    (r"(.*_)?(num_|n_)?(self_)?(attention_|attn_)?heads?|num_.*_heads", 4),
    (r"(.*_)?head_dim|d_kv|kv_channels|attention_head_size|d_head", 8),
    (r"qk_rope_head_dim|rotary_dim|rotary_ndims", 4),
    (r"(.*_)?(kv|q|o)_lora_rank", 24),
    (r"(.*_)?(hidden_size|d_model|n_embd|embed_dims?|embedding_size|dim|hidden_dim|width|projection_dim)", 32),
    (r"(.*_)?(hidden_channels|d_embed|model_dim|embed_size|dim_?model|conv_dim)", 32),
    (r"(.*_)?(intermediate_size|(ffn?|mlp|inner|feed_?forward)_(dim|size))|d_ff|n_inner|ffn_hidden_size|d_inner", 48),
    (r"dim_ff|dim_feedforward|expert_ffn_hidden_size", 48),
    (r"(.*_)?(num|n)_(.*_)?(hidden_layers|layers?|blocks)|(encoder|decoder)_layers|n_layers?|num_layers_.*|depth", 2),
    (r"(.*_)?(num|n)_(.*_)?experts", 4),
    (r"num_experts_per_tok(en)?|moe_topk|top_k_experts|moe_k|experts_per_token|moe_top_k", 2),
    (r"(.*_)?(max_)?(position_embeddings|positions|source_positions|target_positions|sequence_length)", 64),
    (r"max_seq_len.*|n_ctx|seq_length", 64),
    (r"image_size", 32),
    (r"patch_size", 8),
]
_PATTERNS = [(re.compile(pattern), most) for pattern, most in _SIZES]
_DEPTHS = re.compile(r"(.*_)?depths?|num_.*_blocks|(.*_)?layers")
_WIDTHS = re.compile(r"(.*_)?(hidden_sizes|dims|channels|conv_dim)")
_IDS = re.compile(r".*_token_(id|index)|.*_token")


def tiny(kind: type, given: Mapping[str, Any] | None = None) -> Any:
    """The default config of a class, small; configs within it too.  given: what is said instead, nested as they are."""
    given, made = dict(given or {}), {}
    for name, value in vars(kind()).items():
        if name.startswith("_"):
            continue
        if hasattr(value, "to_dict"):
            own = given.pop(name, {})
            within = isinstance(own, Mapping) and "model_type" not in own  # a config of another kind is given whole
            made[name] = tiny(type(value), own) if within else own
        elif (size := small(name, value)) != value:
            made[name] = size
    return kind(**made | given)


def small(name: str, value: Any) -> Any:
    """A small value of a config's field of this name."""
    if type(value) is int and value > 0:
        if _IDS.fullmatch(name):
            return value if value < VOCABULARY else 40 + sum(map(ord, name)) % 50  # another one for each token
        return next((min(most, value) for pattern, most in _PATTERNS if pattern.fullmatch(name)), value)
    if isinstance(value, (list, tuple)) and value and all(type(one) is int for one in value):
        if _DEPTHS.fullmatch(name) and len(value) < 7:
            return type(value)(min(one, 1) for one in value)
        if _WIDTHS.fullmatch(name) and min(value) > 16:
            return type(value)(one * 16 // min(value) for one in value)
        if name == "image_size":
            return type(value)(min(one, 32) for one in value)
    return value
