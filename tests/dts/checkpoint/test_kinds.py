"""What holds tensors and is no full floating-point model: refused by name, in one line for each cause."""

import json

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from dts.checkpoint import CheckpointError, dtype_note, open_checkpoint

W = torch.ones(4, 4)
CODE = torch.ones(4, 4, dtype=torch.uint8)
INT = torch.ones(4, 4, dtype=torch.int32)
FP8 = W.to(torch.float8_e4m3fn)
QUANTISED = {
    "FineGrainedFP8Config": {"a.weight": FP8, "a.weight_scale_inv": torch.ones(1, 1)},
    "fp8": {"a.weight": FP8, "a.weight_scale": torch.ones(())},
    "fp8 .float8_e5m2": {"a.weight": W.to(torch.float8_e5m2)},
    "compressed-tensors": {"a.weight_packed": INT, "a.weight_scale": W, "a.weight_shape": torch.tensor([4, 4])},
    "GPTQ": {"a.qweight": INT, "a.qzeros": INT, "a.scales": W, "a.g_idx": INT[0]},
    "AWQ": {"a.qweight": INT, "a.qzeros": INT, "a.scales": W},
    "EETQ": {"a.qweight": CODE.to(torch.int8), "a.weight_scales": W[0]},
    "bitsandbytes": {
        "a.weight": CODE,
        "a.weight.absmax": W[0],
        "a.weight.quant_map": W[0],
        "a.weight.quant_state.bitsandbytes__nf4": CODE[0],
    },
    "dequantise": {"a.weight": CODE.to(torch.int8), "a.SCB": W[0]},
    "HQQ": {"a.W_q": CODE, "a.scale": W, "a.zero": W},
    "torchao": {"a._weight_qdata": CODE.to(torch.int8), "a._weight_scale": W[0]},
    "quanto": {"a.weight._data": CODE, "a.weight._scale": W},
    "MXFP4": {"a.gate_up_proj_blocks": CODE, "a.gate_up_proj_scales": CODE},
    "AQLM": {"a.codes": CODE.to(torch.int16), "a.codebooks": W},
    "NVFP4": {"a.weight": CODE, "a.weight_scale": FP8, "a.weight_scale_2": torch.ones(())},
    "int8 weights": {"a.weight": CODE.to(torch.int8)},
}
ADAPTERS = {
    "is a LoRA": {"base_model.model.a.lora_A.weight": W, "base_model.model.a.lora_B.weight": W},
    "is a LoRA .lora_unet": {"lora_unet_a.lora_down.weight": W, "lora_unet_a.alpha": torch.ones(())},
    "DoRA": {"a.lora_A.default.weight": W, "a.lora_magnitude_vector": W[0]},
    "IA3": {"base_model.model.a.ia3_l": W},
    "prompt-tuning": {"prompt_embeddings": W},
    "unmerged": {"base_model.model.a.base_layer.weight": W},
    "optimizer's state": {"a.exp_avg": W, "a.exp_avg_sq": W},
}


@pytest.mark.parametrize("says", [*QUANTISED, *ADAPTERS])
def test_every_kind_is_refused_by_name_from_a_dict_a_file_and_a_folder(says, tmp_path):
    state = (QUANTISED | ADAPTERS)[says] | {"b.weight": W.clone()}
    state = {name: value.clone() for name, value in state.items()}
    torch.save(state, tmp_path / "model.pt")
    sources = [state, tmp_path / "model.pt"]
    (tmp_path / "folder").mkdir()
    save_file(state, tmp_path / "folder/model.safetensors")
    for source in [*sources, tmp_path / "folder", tmp_path / "folder/model.safetensors"]:
        with pytest.raises(CheckpointError, match=says.replace(" .", ".*")) as raised:
            open_checkpoint(source)
        assert "give" in str(raised.value) and "\n" not in str(raised.value)


def test_models_whose_names_only_look_like_these_are_opened():
    for state in (
        {"prompt_encoder.no_mask_embed.weight": W, "codebook.weight": W},
        {"attn.W_q": W, "a.scale": W, "a.scales": W},
        {"base_model.model.a.weight": W},
        {"mask": CODE, "attn.bias": CODE},
        {"a.weight": W, "a.weight_scale": W[0]},
    ):
        assert open_checkpoint(state).names == list(state)


@pytest.mark.parametrize("method", ["gptq", "awq", "fp8", "mxfp4", "quark", None])
@pytest.mark.parametrize("inner", [False, True])
def test_a_config_that_says_quantised(method, inner, tmp_path):
    save_file({"a.weight": W}, tmp_path / "model.safetensors")
    stated = {"quantization_config": {"quant_method": method} if method else {"load_in_4bit": True}}
    (tmp_path / "config.json").write_text(json.dumps({"text_config": stated} if inner else stated))
    with pytest.raises(CheckpointError, match=f"quantised by {method or 'bitsandbytes'}.*remove quantization_config"):
        open_checkpoint(tmp_path)


class Subclass(torch.Tensor):
    @staticmethod
    def __new__(cls, value):
        return torch.Tensor._make_wrapper_subclass(cls, value.shape, dtype=value.dtype)

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        raise NotImplementedError


@pytest.mark.parametrize(
    ("module", "says"),
    [
        ("torchao.dtypes.affine", "torchao"),
        ("bitsandbytes.nn.modules", "bitsandbytes"),
        ("optimum.quanto", "quanto"),
        ("mine", "mine.Subclass"),
    ],
)
def test_tensors_of_other_classes_are_named(module, says, monkeypatch):
    monkeypatch.setattr(Subclass, "__module__", module)
    value = Subclass.__new__(Subclass, W)
    with pytest.raises(CheckpointError, match=says):
        open_checkpoint({"a.weight": value, "b": W})


def test_a_peft_model_is_named_whatever_its_adapter(monkeypatch):
    class PeftModel(nn.Module):
        pass

    PeftModel.__module__ = "peft.peft_model"
    for model in (PeftModel(), type("PeftModelForCausalLM", (PeftModel,), {})()):
        with pytest.raises(CheckpointError, match="merge_and_unload"):
            open_checkpoint(model)
    model = nn.Linear(2, 2)
    model._hf_peft_config_loaded = True
    with pytest.raises(CheckpointError, match="merge_and_unload"):
        open_checkpoint(model)


@pytest.mark.parametrize(
    ("module", "says"),
    [
        (lambda: torch.jit.script(torch.nn.Linear(4, 4)), "TorchScript program"),
        (lambda: torch.nn.Sequential(torch.nn.LazyLinear(4)), "lazy modules that were never run"),
        (lambda: torch.nn.Linear(4, 4).to(torch.complex64), "complex64 tensors, which cannot be stored"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_modules_that_are_no_models_of_real_numbers(module, says):
    with pytest.raises(CheckpointError, match=says):
        open_checkpoint(module())


@pytest.mark.filterwarnings("ignore")
def test_a_program_of_torchscript_runs_no_tasks():
    import dts

    with pytest.raises(TypeError, match="TorchScript program runs no tasks"):
        dts.DTSModel(torch.jit.script(torch.nn.Linear(4, 4)))


def test_a_lora_folder_is_one_line(tmp_path):
    save_file({"a.lora_A.weight": W}, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "org/base"}')
    with pytest.raises(CheckpointError, match="is a LORA adapter .PEFT. of org/base.*merge_and_unload") as raised:
        open_checkpoint(tmp_path)
    assert "\n" not in str(raised.value)


def test_all_that_is_wrong_with_a_state_dict_is_said_at_once():
    state = {1: W, "": W, "a\0b": W, "s": W.to_sparse(), "n": [1, 2], "m": torch.empty(2, device="meta"), "w": W}
    with pytest.raises(CheckpointError) as raised:
        open_checkpoint(state)
    lines = str(raised.value).splitlines()
    assert len(lines) == 4 and "'', 'a\\x00b', 1" in lines[0]
    for what in ("sparse_coo", "not tensors: n", "meta"):
        assert sum(what in line for line in lines) == 1
    for odd in (W.to(torch.complex64), torch.quantize_per_tensor(W, 0.1, 0, torch.qint8)):
        with pytest.raises(CheckpointError, match="complex64 tensors|torch.ao"):
            open_checkpoint({"a": odd})
    many = {f"layer.{i}.weight": W.to(torch.float8_e4m3fnuz) for i in range(100)}
    with pytest.raises(CheckpointError, match="float8_e4m3fnuz.*97 more") as raised:
        open_checkpoint(many)
    assert "\n" not in str(raised.value)
    with pytest.raises(CheckpointError, match="not a int"):
        open_checkpoint(3)


def test_what_trainers_write(tmp_path):
    sd = {"a": W}
    for state, says in (
        ({"model": sd, "ema": sd}, "several states: ema, model.*model.pt#model"),
        ({"state": {0: sd}, "param_groups": []}, "optimizer's state"),
        ({"module": sd, "param_shapes": []}, "zero_to_fp32"),
        ({"nets": {"model": sd}}, "nets: model"),
        ({"epoch": 3}, "keys are epoch"),
    ):
        torch.save(state, tmp_path / "model.pt")
        with pytest.raises(CheckpointError, match=says):
            open_checkpoint(tmp_path / "model.pt")
    torch.save({"model": sd, "ema": {"a": 2 * W}, "optimizer": sd}, tmp_path / "model.pt")
    assert open_checkpoint(f"{tmp_path}/model.pt#ema").load("a")[0, 0] == 2
    with pytest.raises(CheckpointError, match="no state 'x'; it has ema, model, optimizer"):
        open_checkpoint(f"{tmp_path}/model.pt#x")
    torch.save({"model": sd, "optimizer": sd}, tmp_path / "model.pt")
    assert open_checkpoint(tmp_path / "model.pt").names == ["a"]


def test_dtypes_that_differ_are_said():
    models = {dtype: open_checkpoint({"a": W.to(dtype)}) for dtype in (torch.float32, torch.bfloat16)}
    wide, narrow = models.values()
    assert dtype_note(wide, wide) is None
    assert "base is bfloat16 and the fine-tune float32" in dtype_note(narrow, wide)
    assert "rounding the fine-tune to bfloat16" in dtype_note(wide, narrow)


@pytest.mark.parametrize("start", [b"\x80\x02", b"PK", b"\x1f\x8b", b"BZh"])
def test_a_header_as_long_as_another_format_s_first_bytes(start, tmp_path):
    """A safetensors file starts with the length of its header, 640 for one: the bytes that old pickles start with."""
    length = int.from_bytes(start, "little")
    row = '{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    path = tmp_path / "model.safetensors"
    path.write_bytes(length.to_bytes(8, "little") + row.encode().ljust(length) + b"\0\0\x80\x3f")
    assert open_checkpoint(path).load("w").item() == 1
