"""A fine-tune whose config has it compute otherwise than its base: nothing is made of it, or run, without a word."""

import copy
import warnings

import pytest
import torch

import dts
from dts.exports import export_lora
from dts.merge import merge
from dts.sites.configs import OtherConfig

transformers = pytest.importorskip("transformers", minversion="5")
SIZES = dict(vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
IDS = torch.arange(3, 15)[None]


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """base, and two fine-tunes of one set of weights: alike computes as it does, longer has other frequencies."""
    root = tmp_path_factory.mktemp("configs")
    torch.manual_seed(0)
    base = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES)).eval()
    with torch.no_grad():
        for value in base.parameters():
            value += 0.2 * torch.randn_like(value)  # so that it attends to some places more than to others
    base.save_pretrained(root / "base")
    tuned = copy.deepcopy(base)
    with torch.no_grad():
        for value in tuned.parameters():
            value += 0.02 * torch.randn_like(value)
    tuned.save_pretrained(root / "alike")
    tuned.config.rope_parameters = {"rope_type": "default", "rope_theta": 1e6}
    tuned.save_pretrained(root / "longer")
    return root


def test_it_is_said_wherever_the_base_s_config_is_taken(places, tmp_path):
    words = "rope_theta is 1000000.0, the base's 10000.0"
    with pytest.warns(OtherConfig, match=words):
        adapter = dts.compress(places / "base", places / "longer", out=tmp_path / "a", rank_fraction=1.0)
    with pytest.warns(OtherConfig, match=f"task 'a' .*{words}"):
        model = dts.DTSModel.from_pretrained(places / "base", adapters={"a": tmp_path / "a"})
    with pytest.warns(OtherConfig, match=words):
        merge(places / "base", [places / "longer", places / "alike"], out=tmp_path / "merged")
    with pytest.warns(OtherConfig, match=words):
        export_lora(adapter, places / "base", tmp_path / "lora")
    # and is so: what is written has the fine-tune's config, what runs over the base gives other answers
    dts.adapter.write_checkpoint(places / "base", adapter, tmp_path / "full")
    full = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "full").eval()
    assert full.config.rope_parameters["rope_theta"] == 1e6
    assert (model(IDS, tasks="a").logits - full(IDS).logits).abs().max() > 0.01


def test_of_one_that_computes_alike_nothing_is_said(places, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error", OtherConfig)
        adapter = dts.compress(places / "base", places / "alike", out=tmp_path / "a", rank_fraction=1.0)
        dts.DTSModel.from_pretrained(places / "base", adapters={"a": tmp_path / "a"})
        export_lora(adapter, places / "base", tmp_path / "lora")


def test_weights_that_are_the_base_s_under_another_config_change_nothing_and_that_is_said(places, tmp_path):
    longer = transformers.LlamaForCausalLM.from_pretrained(places / "base")
    longer.config.rope_parameters = {"rope_type": "default", "rope_theta": 1e6}
    longer.save_pretrained(tmp_path / "config")
    with pytest.raises(dts.adapter.NothingChanged, match="its config alone is another one.*rope_theta is 1000000.0"):
        dts.compress(places / "base", tmp_path / "config", out=tmp_path / "a")
