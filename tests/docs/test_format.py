"""docs/format.md has every key and tensor of an adapter that is written now."""

import json
import re

import torch
from safetensors import safe_open

import dts
from tests.docs.pages import ROOT

PAGE = (ROOT / "docs" / "format.md").read_text("utf-8")


def test_everything_that_is_written_is_on_the_page(tmp_path):
    torch.manual_seed(0)
    base = {"a.weight": torch.randn(64, 48), "a.bias": torch.randn(64), "e.experts": torch.randn(3, 40, 32)}
    tuned = {name: value + 0.05 * torch.randn_like(value) for name, value in base.items()}
    tuned["a.weight"][:5] = base["a.weight"][:5]
    tuned["head.weight"] = torch.randn(3, 48)
    for method in ("residual", "sketch", "paper"):
        dts.compress(base, tuned, tmp_path / method, method=method, rank_fraction=0.9)
        config = json.loads((tmp_path / method / "dts_config.json").read_text("utf-8"))
        rows = [*config["tensors"].values()]
        keys = set(config) | {key for row in rows for key in row}
        keys |= {key for section in ("task", "base", "finetuned") for key in config[section]}
        assert not sorted(key for key in keys if not re.search(rf"[`\"]{key}[`\"]", PAGE))
        with safe_open(tmp_path / method / "dts_model.safetensors", "pt") as file:
            suffixes = {name.rpartition(".")[2] for name in file.keys()}
        assert not sorted(suffix for suffix in suffixes if f"`T.{suffix}`" not in PAGE)
        assert f"what is written now is version {config['format_version']}" in PAGE
