"""LoRAs of the real PEFT, imported: the fine-tune is what PEFT merges, and the adapter is near it as it says."""

import json
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file

import dts
from dts.checkpoint import CheckpointError, open_checkpoint, write_safetensors
from dts.checkpoint.errors import NotRead
from dts.exports import export_lora, import_lora
from dts.exports.from_lora import Shared, merged_checkpoint
from dts.exports.peft_folder import read_peft
from dts_kernels.dispatch import exact_products
from tests.dts.exports.conftest import base_of, inputs

peft = pytest.importorskip("peft", reason="imports what PEFT saves: pip install peft")

OPTIONS = {
    "plain": ("llama", dict(target_modules=["q_proj", "down_proj"], r=4, lora_alpha=12, task_type="CAUSAL_LM")),
    "rslora and patterns": (
        "llama",
        dict(
            target_modules=["q_proj", "v_proj", "up_proj"],
            r=4,
            use_rslora=True,
            rank_pattern={"q_proj": 2, "layers.1.mlp.up_proj": 6},
            alpha_pattern={"v_proj": 20},
        ),
    ),
    "head, biases and embeddings": (
        "bert",
        dict(
            target_modules=["query", "dense", "word_embeddings"],
            r=4,
            modules_to_save=["classifier"],
            bias="lora_only",
            task_type="SEQ_CLS",
        ),
    ),
    "every bias": ("bert", dict(target_modules=["key"], r=3, bias="all", task_type="SEQ_CLS")),
    "biases of B": ("bert", dict(target_modules=["key", "value"], r=3, lora_bias=True, task_type="SEQ_CLS")),
    "Conv1D": ("gpt2", dict(target_modules=["c_attn", "c_fc", "c_proj"], r=4, fan_in_fan_out=True)),
    "convolution": ("vit", dict(target_modules=["projection", "q_proj", "query"], r=4, modules_to_save=["classifier"])),
    "norms": ("llama", dict(target_modules=["q_proj"], r=2, modules_to_save=["input_layernorm", "norm"])),
}


def saved(made, case, folder):
    """(name, folder of the base's, what PEFT merges): a LoRA of random content is written to ``folder``."""
    name, options = OPTIONS[case]
    where = made(name)
    base = base_of(where.parent, name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(base, peft.LoraConfig(**options))
        draw = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter += 0.1 * torch.randn(parameter.shape, generator=draw)
        model.save_pretrained(folder)
        # of the files, as PEFT before 0.21 writes no biases of `lora_only`
        return name, where, peft.PeftModel.from_pretrained(base_of(where.parent, name), folder).merge_and_unload()


@pytest.mark.parametrize("case", OPTIONS)
def test_the_fine_tune_is_what_peft_merges(made, tmp_path, case):
    name, where, expected = saved(made, case, tmp_path / "lora")
    merged = merged_checkpoint(read_peft(tmp_path / "lora"), open_checkpoint(where / "base"))
    state, base = expected.state_dict(), base_of(where.parent, name).state_dict()
    assert not [key for key in merged.names if key not in state]
    changed = [key for key in merged.names if not torch.equal(merged.load(key), base[key])]
    assert len(changed) > 2
    for key in merged.names:
        torch.testing.assert_close(merged.load(key), state[key], rtol=1e-5, atol=1e-6, msg=key)
    left = [key for key in state if key not in merged.names and not torch.equal(state[key], base[key])]
    assert not left


@pytest.mark.parametrize("case", ["head, biases and embeddings", "Conv1D", "plain"])
def test_the_adapter_answers_as_peft_does(made, tmp_path, case):
    name, where, expected = saved(made, case, tmp_path / "lora")
    adapter = import_lora(tmp_path / "lora", where / "base", tmp_path / "adapter", target_error=1e-2, vectors="exact")
    assert adapter.name == "lora" and 0 < adapter.config["squared_error"] < 0.011
    model = dts.DTSModel.from_pretrained(where / "base", adapters={"task": tmp_path / "adapter"})
    model.set_task("task")
    with torch.no_grad(), exact_products():
        found, want, before = (m(**inputs(name)).logits for m in (model, expected, base_of(where.parent, name)))
    assert (found - want).norm() < 0.25 * (before - want).norm()
    merged = merged_checkpoint(read_peft(tmp_path / "lora"), open_checkpoint(where / "base"))
    assert dts.Adapter.load(tmp_path / "adapter").verify(where / "base", merged).ok


def test_there_and_back_again(made, tmp_path):
    """An exported adapter, imported: the same difference, though the output is tied to the embedding."""
    where = made("qwen2")
    export_lora(where / "adapter", where / "base", tmp_path / "lora")
    merged = merged_checkpoint(read_peft(tmp_path / "lora"), open_checkpoint(where / "base"))
    for name, tensor in dts.Adapter.load(where / "adapter").apply(where / "base"):
        torch.testing.assert_close(merged.load(name), tensor, rtol=1e-5, atol=1e-5, msg=name)


def test_what_mergekit_extracts(made, tmp_path):
    """A folder in its layout: bfloat16 factors, embeddings, norms as whole modules, no adapter's name in the names."""
    where, lora = made("llama"), tmp_path / "extracted"
    lora.mkdir()
    draw = torch.Generator().manual_seed(0)
    base = open_checkpoint(where / "base")
    tensors, expected = {}, {}
    for name in base.names:
        module, value = name.removesuffix(".weight"), base.load(name)
        if value.dim() < 2:
            tensors[f"base_model.model.{name}"] = expected[name] = value + 0.1
            continue
        m, n = value.shape
        a, b = (0.1 * torch.randn(s, generator=draw) for s in ((4, n), (m, 4)))
        a, b = a.bfloat16(), b.bfloat16()
        if "embed_tokens" in name:
            tensors[f"base_model.model.{module}.lora_embedding_A"] = b.T.contiguous()
            tensors[f"base_model.model.{module}.lora_embedding_B"] = a.T.contiguous()
        else:
            tensors[f"base_model.model.{module}.lora_A.weight"] = a
            tensors[f"base_model.model.{module}.lora_B.weight"] = b
        expected[name] = value + b.float() @ a.float()
    save_file(tensors, lora / "adapter_model.safetensors")
    config = {
        "base_model_name_or_path": str(where / "base"),
        "peft_type": "LORA",
        "use_rslora": False,
        "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head"],
        "modules_to_save": ["input_layernorm", "post_attention_layernorm", "norm"],
        "task_type": "CAUSAL_LM",
        "r": 4,
        "lora_alpha": 4,
        "rank_pattern": {},
        "alpha_pattern": {},
        "lora_dropout": 0.0,
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
    (lora / "adapter_config.json").write_text(json.dumps(config))
    merged = merged_checkpoint(read_peft(lora), base)
    for name in base.names:
        torch.testing.assert_close(merged.load(name), expected[name], msg=name)
    adapter = import_lora(lora, where / "base", target_error=0.05)
    assert adapter.config["squared_error"] <= 0.05


def test_a_small_difference_of_a_base_in_bfloat16_is_not_rounded_away(made, tmp_path):
    where = made("llama")
    base = base_of(where.parent, "llama").bfloat16()
    base.save_pretrained(tmp_path / "half")
    model = peft.get_peft_model(base, peft.LoraConfig(target_modules=["up_proj"], r=2, init_lora_weights=False))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter *= 1e-3
    model.save_pretrained(tmp_path / "lora")
    adapter = import_lora(tmp_path / "lora", tmp_path / "half", target_error=0.02)
    stored = load_file(tmp_path / "lora/adapter_model.safetensors")
    name = "model.layers.0.mlp.up_proj"
    a, b = (stored[f"base_model.model.{name}.lora_{side}.weight"].float() for side in "AB")
    exact = 4 * b @ a  # lora_alpha 8 over r 2
    entry = adapter.entries[f"{name}.weight"]
    assert entry.dtype == torch.bfloat16
    assert (entry.delta() - exact).norm() ** 2 < 0.05 * exact.norm() ** 2


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"use_dora": True}, "is DoRA, more than a LoRA"),
        ({"peft_type": "VERA"}, "is a VERA adapter"),
        ({"init_lora_weights": "pissa_niter_4"}, "initialised by pissa"),
        ({"trainable_token_indices": [1]}, "trainable tokens"),
        ({"rank_pattern": {"(": 4}}, "is damaged: the pattern"),
        ({"alpha_pattern": ["q_proj"]}, "is damaged: the pattern"),
        ({"r": 5}, "has rank 4, its adapter_config.json says 5"),
        ({"lora_alpha": True}, "says 4 and lora_alpha True"),
        ({"use_rslora": "no"}, "use_rslora is 'no', neither true nor false"),
        ({"auto_mapping": [1]}, "auto_mapping is"),
        ({"auto_mapping": {"base_model_class": 7}}, "auto_mapping is"),
    ],
)
def test_other_types_are_refused_by_name(made, tmp_path, change, reason):
    _, where, _ = saved(made, "plain", tmp_path / "lora")
    path = tmp_path / "lora/adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CheckpointError, match=reason):
        import_lora(tmp_path / "lora", where / "base", tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()


A, B = (f"base_model.model.model.layers.0.self_attn.q_proj.lora_{which}.weight" for which in "AB")
NORM = "base_model.model.model.norm"


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({A: torch.tensor(1.0)}, r"is no product: its A is \[\], its B \[32, 4\]"),
        ({B: torch.ones(32, 3)}, r"is no product: its A is \[4, 32\], its B \[32, 3\]"),
        ({A: torch.ones(0, 32), B: torch.ones(32, 0)}, "is no product"),
        ({A: torch.ones(4, 32).int()}, "is not of real floats: .*int32"),
        ({A: torch.ones(4, 32, dtype=torch.complex64)}, "is not of real floats: .*complex64"),
        ({f"{NORM}.weight": torch.ones(32, dtype=torch.complex64)}, "tensors of complex numbers, .*norm.weight"),
        ({A.replace(".weight", ".default.weight"): torch.ones(4, 32)}, "there twice, .*lora_A.* and .*lora_A"),
        ({A.removeprefix("base_model.model."): torch.ones(4, 32)}, "there twice"),
        (
            {f"{NORM}.weight": torch.ones(32), f"{NORM}.modules_to_save.weight": torch.zeros(32)},
            "there twice, .*norm.* and .*norm",
        ),
    ],
)
def test_tensors_that_are_no_lora_are_refused_by_name(made, tmp_path, more, reason):
    """They ended in errors of products, or one of two was taken without a word."""
    _, where, _ = saved(made, "plain", tmp_path / "lora")
    file = tmp_path / "lora/adapter_model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in (load_file(file) | more).items()}  # of a file written over
    # safetensors 0.5 writes no complex numbers
    write_safetensors(file, {name: (t.dtype, t.shape) for name, t in tensors.items()}, tensors.get)
    with pytest.raises(CheckpointError, match=reason):
        import_lora(tmp_path / "lora", where / "base")


def test_a_bias_of_another_length_is_not_spread(made, tmp_path):
    _, where, _ = saved(made, "biases of B", tmp_path / "lora")
    file = tmp_path / "lora/adapter_model.safetensors"
    tensors = load_file(file)
    bias = next(name for name in tensors if name.endswith("lora_B.bias"))
    save_file(tensors | {bias: torch.ones(1)}, file)
    with pytest.raises(CheckpointError, match=r"lora_B.bias is of \[1\], the model's bias of \[32\]"):
        import_lora(tmp_path / "lora", where / "base", rank_fraction=0.5)


def test_what_a_config_says_that_is_not_known_is_told(made, tmp_path):
    _, where, _ = saved(made, "plain", tmp_path / "lora")
    with warnings.catch_warnings():
        warnings.simplefilter("error", NotRead)
        read_peft(tmp_path / "lora")  # of all that PEFT writes nothing is unknown
    path = tmp_path / "lora/adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"use_new_thing": True, "use_old_thing": False}))
    with pytest.warns(NotRead, match="says use_new_thing, which is not known here"):
        read_peft(tmp_path / "lora")


def test_damaged_and_strange_folders_are_refused(made, tmp_path):
    _, where, _ = saved(made, "plain", tmp_path / "lora")
    with pytest.raises(CheckpointError, match="no PEFT folder"):
        import_lora(where / "tuned", where / "base")
    with pytest.raises(CheckpointError, match="does not belong to .* of the parameters it changes are not there"):
        import_lora(tmp_path / "lora", made("bert") / "base")
    file = tmp_path / "lora/adapter_model.safetensors"
    tensors = load_file(file)
    first = next(iter(tensors))
    save_file(tensors | {first.replace("lora_A.weight", "lora_magnitude_vector"): torch.ones(2)}, file)
    with pytest.raises(CheckpointError, match="lora_magnitude_vector"):
        import_lora(tmp_path / "lora", where / "base")
    save_file({key: value for key, value in tensors.items() if key != first}, file)
    with pytest.raises(CheckpointError, match="has no A"):
        import_lora(tmp_path / "lora", where / "base")
    other = list(tensors)[-1].replace("lora_B.weight", "lora_magnitude_vector")
    save_file({key: value for key, value in tensors.items() if key != first} | {other: torch.ones(2)}, file)
    path = tmp_path / "lora/adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"r": 5}))
    with pytest.raises(CheckpointError, match="lora_magnitude_vector.*has no A.*has rank 4"):  # all of it at once
        import_lora(tmp_path / "lora", where / "base")
    with pytest.raises(ValueError, match="method exact has nothing to keep"):
        import_lora(tmp_path / "lora", where / "base", method="exact")


def test_one_use_of_a_shared_tensor_is_told(made, tmp_path):
    where = made("qwen2")
    base = base_of(where.parent, "qwen2")
    peft.get_peft_model(base, peft.LoraConfig(target_modules=["embed_tokens"], r=2)).save_pretrained(tmp_path / "lora")
    with pytest.warns(Shared, match="are one tensor"):
        merged_checkpoint(read_peft(tmp_path / "lora"), open_checkpoint(where / "base"))
