"""Sub-models of diffusers: by a library in its place here, and by itself where it is installed (`make models`)."""

import json
import sys
import types

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import dts
from dts.checkpoint import CheckpointError, open_checkpoint
from dts.cli.app import app
from tests.dts.cli.said import said

SIZES = {"width": 24, "depth": 2}


class SmallUNet(torch.nn.Module):
    """As a model of diffusers: made of a config, loaded from a folder."""

    def __init__(self, width, depth):
        super().__init__()
        self.blocks = torch.nn.ModuleList(torch.nn.Linear(width, width) for _ in range(depth))

    @classmethod
    def from_config(cls, config):
        return cls(**{key: value for key, value in config.items() if not key.startswith("_")})

    @classmethod
    def from_pretrained(cls, folder, subfolder="", torch_dtype=torch.float32):
        made = cls.from_config(json.loads((folder / subfolder / "config.json").read_text()))
        made.load_state_dict(load_file(folder / subfolder / "diffusion_pytorch_model.safetensors"))
        return made.to(torch_dtype)

    def forward(self, sample):
        for block in self.blocks:
            sample = sample + block(sample).tanh()
        return sample


@pytest.fixture
def pipelines(tmp_path, monkeypatch):
    """A folder with the pipelines ``base`` and ``tuned``, and the adapter between their U-Nets."""
    here = types.SimpleNamespace(SmallUNet=SmallUNet, __version__="0")
    monkeypatch.setitem(sys.modules, "diffusers", here)
    torch.manual_seed(0)
    model = SmallUNet(**SIZES)
    for name in ("base", "tuned"):
        folder = tmp_path / name / "unet"
        folder.mkdir(parents=True)
        (tmp_path / name / "model_index.json").write_text(json.dumps({"unet": ["diffusers", "SmallUNet"]}))
        (folder / "config.json").write_text(json.dumps({"_class_name": "SmallUNet"} | SIZES))
        save_file(model.state_dict(), folder / "diffusion_pytorch_model.safetensors")
        with torch.no_grad():
            for value in model.parameters():
                value.add_(0.02 * torch.randn_like(value))
    dts.compress(tmp_path / "base/unet", tmp_path / "tuned/unet", tmp_path / "made", rank_fraction=0.5)
    return tmp_path


@torch.no_grad()
def test_a_sub_model_is_loaded_from_its_folder(pipelines):
    adapter, x = dts.Adapter.load(pipelines / "made"), torch.randn(2, 24)
    dense = SmallUNet.from_pretrained(pipelines / "base/unet")
    dense.load_state_dict(dict(adapter.apply(pipelines / "base/unet")))
    for place, options in (("base/unet", {}), ("base", {"subfolder": "unet"})):
        model = dts.DTSModel.from_pretrained(pipelines / place, {"a": adapter}, **options)
        torch.testing.assert_close(model(x, tasks=["a", dts.BASE])[0], dense(x)[0], rtol=1e-4, atol=1e-5)
    assert dts.DTSModel.from_pretrained(pipelines / "base/unet", dtype="float16").blocks[0].weight.dtype is torch.half
    with pytest.raises(ValueError, match="'float61' is no dtype"):
        dts.DTSModel.from_pretrained(pipelines / "base/unet", dtype="float61")
    with pytest.raises(CheckpointError, match="sub-models, .*base/unet"):
        dts.DTSModel.from_pretrained(pipelines / "base", {"a": adapter})


def test_a_lora_is_written_of_it(pipelines):
    words = ["export", "lora", str(pipelines / "made"), str(pipelines / "lora"), "--base", str(pipelines / "base/unet")]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.stderr
    assert json.loads((pipelines / "lora/adapter_config.json").read_text())["target_modules"] == ["0", "1"]


@pytest.mark.parametrize(
    "words",
    [
        ["eval", "base/unet", "tuned/unet", "made"],
        ["serve", "base/unet", "--adapters", "."],
        ["route", "made", "--base", "base/unet", "--examples", "texts.txt"],
    ],
)
def test_what_answers_with_texts_or_classes_says_that_it_does_not(pipelines, monkeypatch, words):
    monkeypatch.chdir(pipelines)
    (pipelines / "texts.txt").write_text("a b\n" * 20)
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 2 and "SmallUNet of diffusers" in said(done)


def test_the_library_that_is_absent_or_older_is_named(pipelines, monkeypatch):
    monkeypatch.delattr(sys.modules["diffusers"], "SmallUNet")
    with pytest.raises(ValueError, match="diffusers 0 has no class SmallUNet"):
        dts.DTSModel.from_pretrained(pipelines / "base/unet")
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ImportError, match="SmallUNet is a class of diffusers: pip install diffusers"):
        dts.DTSModel.from_pretrained(pipelines / "base/unet")


def test_a_pair_that_does_not_fit_is_told_by_its_classes(pipelines):
    (pipelines / "tuned/unet/config.json").write_text(json.dumps({"_class_name": "OtherNet"}))
    save_file({"other.weight": torch.ones(3, 3)}, pipelines / "tuned/unet/diffusion_pytorch_model.safetensors")
    with pytest.raises(ValueError, match="The base is SmallUNet, the fine-tune OtherNet"):
        dts.compress(pipelines / "base/unet", pipelines / "tuned/unet")


@pytest.mark.parametrize("stem", ["model", "diffusion_pytorch_model"])
def test_a_download_of_one_variant_is_read_whole_or_in_shards(tmp_path, stem):
    for part, name in enumerate("ab", 1):
        save_file({name: torch.ones(2).half()}, tmp_path / f"{stem}.fp16-{part:05d}-of-00002.safetensors")
    where = {name: f"{stem}.fp16-{part:05d}-of-00002.safetensors" for part, name in enumerate("ab", 1)}
    (tmp_path / f"{stem}.safetensors.index.fp16.json").write_text(json.dumps({"weight_map": where}))
    assert open_checkpoint(tmp_path).names == ["a", "b"]
    save_file({"a": torch.ones(2)}, tmp_path / f"{stem}.ema.safetensors")
    with pytest.raises(CheckpointError, match="variants ema, fp16"):
        open_checkpoint(tmp_path)
    assert open_checkpoint(tmp_path, variant="fp16").names == ["a", "b"]
