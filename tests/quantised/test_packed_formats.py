"""Bases of compressed-tensors, which quantisers of GPTQ's and AWQ's kind write, and of quanto."""

import copy

import pytest
import torch
import transformers

import dts
from tests.quantised.conftest import batch

pytestmark = pytest.mark.quantised


def packed_base(model, folder, bits: int):
    """Writes a folder of compressed-tensors, int weights in groups of 32, scales by the largest of each."""
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.quantization import (
        QuantizationArgs,
        QuantizationConfig,
        QuantizationScheme,
        apply_quantization_config,
    )

    args = QuantizationArgs(num_bits=bits, type="int", symmetric=True, strategy="group", group_size=32)
    scheme = QuantizationScheme(targets=["Linear"], weights=args)
    config = QuantizationConfig(
        config_groups={"all": scheme}, ignore=["lm_head"], quantization_status="frozen", format="pack-quantized"
    )
    apply_quantization_config(model, config)
    for module in model.modules():
        if hasattr(module, "weight_scale"):
            groups = module.weight.data.view(module.weight.shape[0], -1, 32)
            module.weight_scale.data = groups.abs().amax(-1) / (2 ** (bits - 1) - 1)
    compressor = ModelCompressor(quantization_config=config)
    compressor.compress_model(model)
    model.save_pretrained(folder)
    compressor.update_config(folder)
    return folder


def far(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("bits", [4, 8])
def test_a_base_of_compressed_tensors_runs_as_the_numbers_that_it_is(llama, tmp_path, bits):
    folder = packed_base(llama.dense(llama.base), tmp_path / "packed", bits)
    numbers = transformers.CompressedTensorsConfig(dequantize=True)
    adapters = {"a": llama.folder / "adapter"}
    model = dts.DTSModel.from_pretrained(
        folder, adapters=adapters, quantised_from=llama.base, quantization_config=numbers
    ).eval()
    ids = batch()
    with torch.no_grad():
        rows, base = model(ids, tasks=["a", None, "a", None]).logits, model(ids, tasks=None).logits
        merged = copy.deepcopy(model).merge_and_unload("a")
        assert far(rows[[0, 2]], merged(ids).logits[[0, 2]]) < 0.02 and far(rows[[1, 3]], base[[1, 3]]) < 0.02
    assert far(merged(ids).logits, base) > 0.1
    with pytest.raises(ValueError, match="load the base as numbers"):  # what unpacks at the first call cannot be told
        dts.DTSModel.from_pretrained(folder, adapters=adapters, quantised_from=llama.base)


def test_a_base_of_quanto_is_refused_by_name(llama):
    eight = transformers.QuantoConfig(weights="int8", modules_to_not_convert=["lm_head"])
    with pytest.raises(ValueError, match=r"a optimum.quanto.*QLinear cannot run tasks"):
        dts.DTSModel.from_pretrained(llama.base, adapters={"a": llama.folder / "adapter"}, quantization_config=eight)
