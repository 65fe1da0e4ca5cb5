"""Configs that have a model compute otherwise, and all that differs between configs and does not."""

import pytest

from dts.sites.configs import otherwise

transformers = pytest.importorskip("transformers", minversion="5")
LLAMA = {"model_type": "llama", "hidden_size": 64, "num_attention_heads": 4, "vocab_size": 99}
FULL = transformers.LlamaConfig(**LLAMA).to_dict()


@pytest.mark.parametrize("base", [LLAMA, FULL])
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"rope_theta": 1e6}, "rope_theta is 1000000.0, the base's 10000.0"),
        ({"rope_scaling": {"type": "linear", "factor": 4.0}}, "rope_type is 'linear', the base's 'default'"),
        ({"num_attention_heads": 8, "head_dim": 16}, "num_attention_heads is 8, the base's 4"),
        ({"hidden_act": "gelu", "rms_norm_eps": 0.1}, "hidden_act is 'gelu', the base's 'silu'; rms_norm_eps is 0.1"),
        ({"model_type": "mistral"}, "model_type is 'mistral', the base's 'llama'"),
    ],
)
def test_what_computes_otherwise_is_named_also_where_the_base_leaves_it_out(base, change, said):
    assert said in otherwise(base, LLAMA | change)


@pytest.mark.parametrize(
    "change",
    [
        {"vocab_size": 103, "bos_token_id": 4, "num_labels": 5, "architectures": ["LlamaForSequenceClassification"]},
        {"rope_theta": 10000.0, "num_key_value_heads": 4, "mlp_bias": False},  # what it has anyway
        {"attention_dropout": 0.1, "initializer_range": 1.0, "use_cache": False, "torch_dtype": "bfloat16"},
        {"num_beams": 4, "temperature": 0.5, "max_length": 7},
        {"_name_or_path": "elsewhere", "transformers_version": "4.30.0", "tie_word_embeddings": True},
    ],
)
@pytest.mark.parametrize("base", [LLAMA, FULL])
def test_what_changes_no_answer_is_not(base, change):
    assert otherwise(base, LLAMA | change) == otherwise(LLAMA | change, base) == ""


def test_in_a_part_of_a_config_and_in_those_that_nobody_knows():
    parts = [transformers.LlavaConfig(text_config=LLAMA | {"rope_theta": theta}).to_dict() for theta in (1e4, 5e5)]
    assert "text_config.rope_parameters.rope_theta is 500000.0" in otherwise(*parts)
    assert otherwise(parts[0], LLAMA) == ""  # a language model of it, which is another one's part
    own = {"model_type": "of nobody", "scale": 2, "only_here": 1}
    assert otherwise(own, {"model_type": "of nobody", "scale": 3, "only_there": 1}) == "scale is 3, the base's 2"
    assert otherwise(None, LLAMA) == otherwise(LLAMA, None) == otherwise({"a": object()}, LLAMA) == ""
    many = {f"f{n:02}": n for n in range(20)}
    assert otherwise(many, {name: -1 - value for name, value in many.items()}).endswith("; and 12 more")
