"""Names on disk are followed as transformers' own loader follows them."""

import json

import pytest
import torch

transformers = pytest.importorskip("transformers")

from dts.nn.layers import LayerDeltas, Owner, adopt  # noqa: E402
from dts.nn.routing import RoutingState  # noqa: E402
from dts.sites.resolve import Target  # noqa: E402
from dts.sites.transformers import built, renamer, with_numbers, without_weights  # noqa: E402


@pytest.mark.skipif(not hasattr(transformers, "KimiLinearConfig"), reason="this transformers has no Kimi Linear")
def test_experts_whose_pattern_is_escaped():
    config = transformers.KimiLinearConfig(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=32,
        moe_intermediate_size=16,
        num_hidden_layers=2,
        num_local_experts=4,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        layer_types=["linear_attention", "full_attention"],
    )
    with torch.device("meta"):
        rename = renamer(transformers.KimiLinearForCausalLM(config))
    experts = "model.layers.1.mlp.experts"
    assert rename("model.layers.1.block_sparse_moe.experts.3.w3.weight") == Target(f"{experts}.gate_up_proj", 3, 1, 2)
    assert rename("model.layers.1.block_sparse_moe.experts.2.w2.weight") == Target(f"{experts}.down_proj", 2)


def test_a_configuration_with_an_infinite_number_builds_its_class(tmp_path):
    """As transformers writes it; names of such a fine-tune were judged by the base's alone, and a LoRA refused."""
    sizes = dict(vocab_size=50, hidden_size=16, num_hidden_layers=1, state_size=4, num_heads=4, head_dim=8, n_groups=1)
    transformers.Mamba2ForCausalLM(transformers.Mamba2Config(**sizes)).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text()) | {"time_step_limit": [0.0, {"__float__": "Infinity"}]}
    assert with_numbers(config)["time_step_limit"] == [0.0, float("inf")]
    model = built(config)
    assert type(model) is transformers.Mamba2ForCausalLM and model.config.time_step_limit[1] == float("inf")


def test_tensors_are_shared_without_weights_where_the_library_shares_none_then():
    """As transformers 5.0 does: exports took a tied embedding for two tensors."""

    class Untied(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inputs, self.outputs = torch.nn.Embedding(9, 4), torch.nn.Linear(4, 9, bias=False)

        def tie_weights(self):
            self.outputs.weight = self.inputs.weight

    made = without_weights(Untied)
    assert made.outputs.weight is made.inputs.weight and made.outputs.weight.is_meta
    assert len(list(without_weights(lambda: torch.nn.Linear(2, 3)).parameters())) == 2  # of a library that ties nothing


def test_names_are_followed_when_tasks_are_loaded_too():
    """Tables are found by the names of classes, and modules that tasks change have classes of their own."""
    sizes = dict(vocab_size=50, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
    image = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=8)
    text = transformers.AltCLIPTextConfig(**sizes, project_dim=16)
    vision = transformers.AltCLIPVisionConfig(**image, patch_size=4, projection_dim=16)
    with torch.device("meta"):
        config = transformers.AltCLIPConfig(text_config=text, vision_config=vision, projection_dim=16)
        model = transformers.AltCLIPModel(config)
    on_disk = "text_model.roberta.encoder.layer.0.output.dense.weight"
    before = renamer(model)(on_disk)
    assert before.name in dict(model.named_parameters()) and before.name != on_disk
    for module in (model, model.text_model):
        adopt(module, Owner, LayerDeltas(RoutingState()))
    assert renamer(model)(on_disk) == before
