"""Adapters as LoRAs for vLLM, without vLLM: what they hold, what is refused, and the cache."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

import dts
from dts.adapter.digests import config_digest
from dts.checkpoint import Mismatch
from dts.exports import NotExact
from dts.exports.lora import MODEL
from dts.serve.catalogue import Catalogue
from dts.vllm.lora import cached, in_words, write_lora
from tests.dts.exports.conftest import made  # noqa: F401  a fixture


@pytest.fixture(scope="module")
def llama(made):  # noqa: F811
    return made("llama")


def test_every_layer_is_exact_and_vectors_are_left_out_by_name(llama, tmp_path):
    result = write_lora(llama / "adapter", llama / "base", tmp_path / "lora")
    adapter = dts.Adapter.load(llama / "adapter")
    stored = load_file(tmp_path / "lora" / "adapter_model.safetensors")
    config = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    assert config["modules_to_save"] is None and config["bias"] == "none" and not config["lora_bias"]
    seen = 0
    for name, entry in adapter.entries.items():
        module = "base_model.model." + name.removesuffix(".weight")
        if len(entry.shape) == 2 and "embed" not in name:
            product = stored[f"{module}.lora_B.weight"] @ stored[f"{module}.lora_A.weight"]
            torch.testing.assert_close(product, entry.delta(), rtol=1e-5, atol=1e-7)
            seen += 1
    vectors = sorted(name for name, entry in adapter.entries.items() if len(entry.shape) == 1)
    assert seen == 15 and len(stored) == 2 * (seen + 1)
    assert sorted(one.name for one in result.left_out) == vectors and len(vectors) == 5
    assert 0 < result.squared_error < 0.02 and "5 vectors are left out" in in_words(result)
    assert "model.norm.weight" in (tmp_path / "lora" / "README.md").read_text().replace("\\", "")


def test_a_rank_that_is_cut_is_in_the_error(llama, tmp_path):
    whole = write_lora(llama / "adapter", llama / "base", tmp_path / "whole")
    cut = write_lora(llama / "adapter", llama / "base", tmp_path / "cut", rank=4)
    assert max(one.rank for one in cut.parameters) == 4 < max(one.rank for one in whole.parameters)
    assert cut.squared_error > whole.squared_error + 0.05


def test_samples_are_refused_unless_they_are_to_be_encoded_anew(llama, tmp_path):
    sketch = tmp_path / "sketch"
    dts.compress(llama / "base", llama / "tuned", out=sketch, method="sketch", rank_fraction=0.3)
    with pytest.raises(NotExact, match="(?s)samples in .* DTS_VLLM_SAMPLES=reencode"):
        write_lora(sketch, llama / "base", tmp_path / "lora")
    assert not (tmp_path / "lora").exists()
    result = write_lora(sketch, llama / "base", tmp_path / "lora", rank=8, samples="reencode")
    assert result.squared_error > 0.2 and "squared relative error 0." in in_words(result)


def test_matrices_without_a_place_and_another_base_are_refused(made, llama, tmp_path):  # noqa: F811
    gpt2 = made("gpt2")
    with pytest.raises(NotExact, match="changes 8 matrices that no LoRA of vLLM is for"):
        write_lora(gpt2 / "adapter", gpt2 / "base", tmp_path / "lora")
    with pytest.raises(Mismatch):
        write_lora(llama / "adapter", llama / "tuned", tmp_path / "lora")
    assert not (tmp_path / "lora").exists()


def test_the_cache_is_by_what_the_adapter_is(llama, tmp_path):
    place = tmp_path / "adapters" / "task"
    shutil.copytree(llama / "adapter", place)
    cache = tmp_path / "cache"

    def get(**options):
        catalogue = Catalogue(place.parent, "base", None)
        found = catalogue.folder("task"), catalogue.digest_of("task")
        return cached(*found, llama / "base", cache, **{"rank": 512, "samples": "refuse"} | options)

    first = get()
    written = (first / MODEL).stat().st_mtime_ns
    assert get() == first and (first / MODEL).stat().st_mtime_ns == written
    assert get(rank=8) != first
    before = config_digest(dts.Adapter.load(place).config)
    dts.Adapter.load(place).truncate(budget=0.15).save(place, overwrite=True)
    assert config_digest(dts.Adapter.load(place).config) != before
    assert get() not in (first, get(rank=8)) and len(list(cache.iterdir())) == 4


def test_a_place_that_cannot_be_written_says_which_option(llama, tmp_path):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(OSError, match="DTS_VLLM_CACHE says another place"):
        cached(llama / "adapter", "0" * 16, llama / "base", tmp_path / "cache", 512, "refuse")
