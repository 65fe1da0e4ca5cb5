"""Exported LoRAs answer in the real PEFT as the adapter does in `DTSModel`."""

import json
import warnings

import pytest
import torch
from safetensors.torch import load_file

import dts
from dts.exports import NotExact, export_lora
from dts.exports.places import target_modules
from dts_kernels.dispatch import exact_products
from tests.dts.exports.conftest import base_of, inputs

peft = pytest.importorskip("peft", reason="loads what is exported with PEFT: pip install peft")


def answer(model, name):
    with torch.no_grad(), exact_products():
        return model(**inputs(name)).logits


def in_peft(base, folder):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return peft.PeftModel.from_pretrained(base, str(folder)).eval()


def expected(folder, name):
    model = dts.DTSModel.from_pretrained(folder / "base", adapters={"task": folder / "adapter"})
    model.set_task("task")
    return answer(model, name)


@pytest.mark.parametrize("name", ["bert", "vit", "gpt2", "llama", "qwen2", "opt", "qwen3_moe", "prophetnet"])
def test_peft_answers_as_the_adapter_does(made, name, tmp_path):
    folder = made(name)
    result = export_lora(folder / "adapter", folder / "base", tmp_path / "lora")
    assert result.squared_error == 0 and not result.left_out and not result.worst()
    assert result.nbytes == sum(file.stat().st_size for file in (tmp_path / "lora").iterdir())
    base = base_of(folder.parent, name)
    before = answer(base, name)
    model = in_peft(base, tmp_path / "lora")
    want = expected(folder, name)
    assert not torch.allclose(before, want, atol=1e-2)
    torch.testing.assert_close(answer(model, name), want, rtol=1e-4, atol=1e-4)
    config = model.peft_config["default"]
    assert all(config.rank_pattern[key] == config.alpha_pattern[key] for key in config.rank_pattern)
    if config.bias == "none" and name not in (
        "gpt2",
        "qwen2",
        "prophetnet",
    ):  # biases are not given back, shared weights are merged twice
        with model.disable_adapter():
            torch.testing.assert_close(answer(model, name), before)
        torch.testing.assert_close(answer(model.merge_and_unload(), name), want, rtol=1e-4, atol=1e-4)


def test_what_the_configuration_says(made, tmp_path):
    """As PEFT's own users write it: short names of layers, norms and heads whole, biases as differences."""
    folder = made("llama")
    export_lora(folder / "adapter", folder / "base", tmp_path / "lora")
    config = json.loads((tmp_path / "lora/adapter_config.json").read_text())
    layers = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert set(config["target_modules"]) == layers | {"embed_tokens", "lm_head"}
    assert "model.norm" in config["modules_to_save"] and len(config["modules_to_save"]) == 5
    assert config["bias"] == "none" and not config["lora_bias"] and not config["fan_in_fan_out"]
    stored = load_file(tmp_path / "lora/adapter_model.safetensors")
    assert stored["base_model.model.lm_head.lora_A.weight"].shape[0] == config["rank_pattern"]["lm_head"] == 12
    codes = stored["base_model.model.model.layers.0.mlp.up_proj.lora_A.weight"]
    assert set(codes.unique().tolist()) <= {-4.0, -1.0, 1.0, 4.0}  # exact: the scale is in B


def test_a_layer_whose_name_is_the_end_of_anothers_is_meant_alone():
    """As GIT's head, "output": PEFT refused the module "layer.0.output", which was meant too."""
    modules = ["output", "layer.0.output", "layer.0.output.dense", "layer.0.query"]
    found = target_modules(["output", "layer.0.query"], modules, [])
    config = peft.LoraConfig(target_modules=found)
    meant = [name for name in modules if peft.tuners.tuners_utils.check_target_module_exists(config, name)]
    assert meant == ["output", "layer.0.query"]
    assert target_modules(["layer.0.query"], modules, []) == ["query"]


def test_the_product_is_the_difference(made, tmp_path):
    """B A of every layer, of a Conv1D transposed, is what the adapter adds, to float32's rounding."""
    folder = made("gpt2")
    export_lora(folder / "adapter", folder / "base", tmp_path / "lora")
    stored = load_file(tmp_path / "lora/adapter_model.safetensors")
    entries = dts.Adapter.load(folder / "adapter").entries
    for name in ("transformer.h.0.attn.c_attn", "transformer.h.1.mlp.c_proj"):
        a, b = (stored[f"base_model.model.{name}.lora_{side}.weight"] for side in "AB")
        torch.testing.assert_close((b @ a).T, entries[f"{name}.weight"].delta(), rtol=1e-5, atol=1e-6)


def error_of(folder, name, lora):
    """||delta - exported||^2 / ||delta||^2, measured from the tensors of the model that PEFT merges."""
    base = base_of(folder.parent, name)
    before = {key: value.clone() for key, value in base.state_dict().items()}
    merged = in_peft(base, lora).merge_and_unload().state_dict()
    made = dict(dts.Adapter.load(folder / "adapter").apply(folder / "base"))
    pairs = [(merged[key] - before[key], made[key] - before[key]) for key in made if key in before]
    return sum(float((a - b).square().sum()) for a, b in pairs) / sum(float(b.square().sum()) for _, b in pairs)


@pytest.mark.parametrize("options", [{"rank": 3}, {"dtype": "bfloat16"}, {"rank": 3, "dtype": "float16"}])
def test_what_is_cut_or_rounded_is_stated(made, tmp_path, options):
    folder = made("llama")
    result = export_lora(folder / "adapter", folder / "base", tmp_path / "lora", **options)
    assert result.worst(3) and result.squared_error > 0
    measured = error_of(folder, "llama", tmp_path / "lora")
    assert result.squared_error == pytest.approx(measured, rel=0.02)
    assert max(one.rank for one in result.parameters) == options.get("rank", 16)


def test_a_sketch_needs_a_rank(made, tmp_path):
    folder = made("llama")
    dts.compress(folder / "base", folder / "tuned", tmp_path / "llama/adapter", method="sketch", budget=0.3)
    (tmp_path / "llama/base").symlink_to(folder / "base")
    with pytest.raises(NotExact, match="--rank 64.*dts apply.*--method residual"):
        export_lora(tmp_path / "llama/adapter", folder / "base", tmp_path / "lora")
    assert not (tmp_path / "lora").exists()
    result = export_lora(tmp_path / "llama/adapter", folder / "base", tmp_path / "lora", rank=8)
    assert 0.2 < result.squared_error < 1
    assert result.squared_error == pytest.approx(error_of(tmp_path / "llama", "llama", tmp_path / "lora"), rel=0.02)


def test_experts_are_left_out_by_name(made, tmp_path):
    folder = made("mixtral")
    result = export_lora(folder / "adapter", folder / "base", tmp_path / "lora")
    assert {one.name.rpartition(".")[2] for one in result.left_out} == {"gate_up_proj", "down_proj"}
    assert result.squared_error > 0.3 and all(one.squared_error == 1 for one in result.worst(4))
    assert all("experts" in one.why for one in result.left_out)


class Odd(torch.nn.Module):
    """Layers that a LoRA cannot hold or that are named so that PEFT mistakes one for another."""

    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv1d(20, 24, 3, stride=2, padding=1)
        self.dilated = torch.nn.Conv1d(24, 32, 3, dilation=2)
        self.attention = torch.nn.MultiheadAttention(32, 2, batch_first=True)
        self.norm = torch.nn.LayerNorm(32)
        self.inner_norm = torch.nn.LayerNorm(32)
        self.proj = torch.nn.Linear(32, 32)
        self.blocks = torch.nn.ModuleDict({"proj": torch.nn.Linear(32, 20), "other": torch.nn.Linear(20, 20)})

    def forward(self, x):
        x = self.dilated(self.conv(x).relu()).transpose(1, 2)
        x = self.inner_norm(x + self.attention(x, x, x)[0])
        return self.blocks["other"](self.blocks["proj"](self.norm(self.proj(x))))


def odd(changed: str = "") -> tuple[Odd, Odd]:
    torch.manual_seed(0)
    base, tuned = Odd(), Odd()
    tuned.load_state_dict(base.state_dict())
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if name.startswith(changed):
                parameter += 0.1 * torch.randn_like(parameter)
    return base.eval(), tuned.eval()


def test_any_model_and_what_no_lora_can_hold(tmp_path):
    base, tuned = odd()
    adapter = dts.compress(base, tuned, method="residual", rank_fraction=0.5, name="odd")
    result = export_lora(adapter, base, tmp_path / "lora")
    how = {one.name: one.how for one in result.parameters}
    assert how["conv.weight"] == how["proj.weight"] == "lora" and how["conv.bias"] == "bias"
    assert how["dilated.weight"] == how["attention.in_proj_weight"] == how["attention.out_proj.weight"] == "whole"
    x = torch.randn(2, 20, 30)
    with torch.no_grad():
        before = base(x)
        expected = Odd().eval()
        expected.load_state_dict(dict(adapter.apply(base)))
        model = in_peft(base, tmp_path / "lora")
        torch.testing.assert_close(model(x), expected(x), rtol=1e-4, atol=1e-4)
        with model.disable_adapter():
            torch.testing.assert_close(model(x), before)


class Kept(torch.nn.Module):
    """Calls its layers from a list, as MaskFormer's pyramid does."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.norm = torch.nn.Linear(32, 48), torch.nn.Linear(48, 32), torch.nn.LayerNorm(32)
        self.steps = [self.first, torch.relu, self.second, self.norm]

    def forward(self, x):
        for step in self.steps:
            x = step(x)
        return x


class Keeps(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.last = Kept(), torch.nn.Linear(32, 48)

    def forward(self, x):
        return self.last(self.inner(x))


def test_layers_called_from_a_list_are_kept_with_the_list(tmp_path):
    torch.manual_seed(0)
    base, tuned = Keeps().eval(), Keeps().eval()
    tuned.load_state_dict({name: value + 0.1 * torch.randn_like(value) for name, value in base.state_dict().items()})
    adapter = dts.compress(base, tuned, method="residual", rank_fraction=0.5, name="keeps")
    result, expected, x = export_lora(adapter, base, tmp_path / "lora"), Keeps().eval(), torch.randn(2, 32)
    expected.load_state_dict(dict(adapter.apply(base)))
    assert json.loads((tmp_path / "lora/adapter_config.json").read_text())["modules_to_save"] == ["inner"]
    assert result.squared_error == 0
    with torch.no_grad():
        torch.testing.assert_close(in_peft(base, tmp_path / "lora")(x), expected(x), rtol=1e-4, atol=1e-4)


def test_code_that_cannot_be_looked_at_is_named(tmp_path):
    """Whether it reads a layer's weight, of which PEFT would give it the base's."""
    made: dict = {}
    exec("def forward(self, x):\n    return x @ self.inner.weight", made)
    base, tuned = (type("Made", (torch.nn.Module,), made)() for _ in range(2))
    base.inner, tuned.inner = torch.nn.Linear(64, 64), torch.nn.Linear(64, 64)
    adapter = dts.compress(base, tuned, method="residual", rank_fraction=0.5, name="made")
    assert "whether Made.forward reads" in " ".join(export_lora(adapter, base, tmp_path / "lora").notes)


@pytest.mark.parametrize("changed", ["blocks", "proj.", "norm.", "blocks.other.bias", "attention.out_proj"])
def test_names_that_end_alike(tmp_path, changed):
    """PEFT takes a module by the end of its name: what has not changed must stay the base's."""
    base, tuned = odd(changed)
    adapter = dts.compress(base, tuned, method="residual", rank_fraction=0.5, name="odd")
    export_lora(adapter, base, tmp_path / "lora")
    expected, x = Odd().eval(), torch.randn(2, 20, 30)
    expected.load_state_dict(dict(adapter.apply(base)))
    with torch.no_grad():
        torch.testing.assert_close(in_peft(base, tmp_path / "lora")(x), expected(x), rtol=1e-4, atol=1e-4)


def test_a_grown_vocabulary_is_whole(made, tmp_path):
    folder = made("llama")
    tuned = base_of(folder.parent, "llama")
    tuned.resize_token_embeddings(64)
    with torch.no_grad():
        tuned.model.embed_tokens.weight[:, ::2] += 0.05
    tuned.save_pretrained(tmp_path / "tuned")
    dts.compress(folder / "base", tmp_path / "tuned", tmp_path / "adapter", method="residual", rank_fraction=0.5)
    result = export_lora(tmp_path / "adapter", folder / "base", tmp_path / "lora")
    assert any("resize_token_embeddings(64)" in note for note in result.notes)
    base = base_of(folder.parent, "llama")
    base.resize_token_embeddings(64)
    applied = dict(dts.Adapter.load(tmp_path / "adapter").apply(folder / "base"))
    tuned.load_state_dict(applied)
    torch.testing.assert_close(
        answer(in_peft(base, tmp_path / "lora"), "llama"), answer(tuned, "llama"), rtol=1e-4, atol=1e-4
    )


def test_bad_input_is_refused(made, tmp_path):
    folder = made("llama")
    with pytest.raises(ValueError, match="dtype is float32, bfloat16, float16, not 'int8'"):
        export_lora(folder / "adapter", folder / "base", tmp_path / "lora", dtype="int8")
    with pytest.raises(ValueError, match="a rank is 1 or more, not 0"):
        export_lora(folder / "adapter", folder / "base", tmp_path / "lora", rank=0)
    with pytest.raises(dts.Mismatch, match="is not the base"):
        export_lora(folder / "adapter", folder / "tuned", tmp_path / "lora")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/text").write_text("mine")
    with pytest.raises(FileExistsError, match="not a PEFT adapter"):
        export_lora(folder / "adapter", folder / "base", tmp_path / "mine", overwrite=True)
    base, tuned = odd()
    adapter = dts.compress(base, tuned, method="residual", rank_fraction=0.5, name="odd")
    with pytest.raises(ValueError, match="model= in Python"):
        export_lora(adapter, base.state_dict(), tmp_path / "lora")
    assert not (tmp_path / "lora").exists()
