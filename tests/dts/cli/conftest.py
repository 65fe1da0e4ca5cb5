"""Tiny checkpoints, and `dts` run in this process."""

import json

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from dts.cli.app import app

CLASSES = ["negative", "positive", "neutral"]


@pytest.fixture
def dts(tmp_path, monkeypatch):
    """``dts("inspect", "a", "--json")`` -> a result with .exit_code, .stdout, .stderr; runs in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")

    def run(*words):
        return CliRunner().invoke(app, [str(word) for word in words], prog_name="dts")

    return run


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """A folder with ``base`` and its fine-tunes ``one`` and ``two``: two matrices, a bias, and a head of their own."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("models")
    base = {f"layer.{i}.weight": torch.randn(96, 64) for i in range(2)} | {"layer.0.bias": torch.randn(96)}
    _save(folder / "base", base, {"model_type": "tiny"})
    for name in ("one", "two"):
        tuned = {key: value + 0.05 * torch.randn_like(value) for key, value in base.items()}
        tuned["classifier.weight"] = torch.randn(3, 64)
        _save(folder / name, tuned, {"model_type": "tiny", "id2label": dict(enumerate(CLASSES))})
    return folder


@pytest.fixture(scope="session")
def other(tmp_path_factory):
    """A model of other shapes."""
    folder = tmp_path_factory.mktemp("other") / "other"
    _save(folder, {f"layer.{i}.weight": torch.ones(48, 64) for i in range(2)}, {})
    return folder


def _save(folder, tensors, config):
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
