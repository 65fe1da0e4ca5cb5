"""Models of diffusers as bases: a sub-model of a pipeline, in a folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from dts.adapter.text import as_dtype
from dts.checkpoint.json_file import json_object
from dts.sites.diffusers import class_name, class_of, on_meta

Config = Mapping[str, Any]


def config_of(path: str | Path, options: Mapping[str, Any]) -> Config | None:
    """The config of a folder, with ``options["subfolder"]``, of diffusers; of a hub id that is not looked for."""
    file = Path(path) / (options.get("subfolder") or "") / "config.json"
    config = json_object(file) if file.is_file() else None
    return None if class_name(config) is None else config


def loaded(config: Config, path: str | Path, options: Mapping[str, Any]) -> nn.Module:
    """The model, in eval mode.  options: of its ``from_pretrained``; ``dtype`` as transformers calls it."""
    given = {key: value for key, value in options.items() if key not in ("dtype", "trust_remote_code")}
    if dtype := as_dtype(options.get("dtype")):
        given["torch_dtype"] = dtype
    model: nn.Module = class_of(config).from_pretrained(path, **given)
    return model.eval()


def empty(config: Config, options: Mapping[str, Any]) -> nn.Module:
    """The model on the meta device."""
    model, dtype = on_meta(config), as_dtype(options.get("dtype"))
    return (model.to(dtype) if dtype else model).eval()
