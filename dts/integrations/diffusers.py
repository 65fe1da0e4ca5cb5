"""Models of diffusers as bases: a sub-model of a pipeline, in a folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dts.adapter.text import as_dtype
from dts.checkpoint.json_file import json_object
from dts.sites.diffusers import class_name, class_of


def is_one(path: str | Path, options: Mapping[str, Any]) -> bool:
    """Whether the folder, with ``options["subfolder"]``, is of diffusers; of a hub id that is not looked for."""
    return class_name(_config(path, options)) is not None


def loaded(path: str | Path, options: Mapping[str, Any]) -> nn.Module:
    """The model, in eval mode.  options: of its ``from_pretrained``; ``dtype`` as transformers calls it."""
    given = {key: value for key, value in options.items() if key not in ("dtype", "trust_remote_code")}
    if dtype := as_dtype(options.get("dtype")):
        given["torch_dtype"] = dtype
    model: nn.Module = class_of(_config(path, options)).from_pretrained(path, **given)
    return model.eval()


def empty(path: str | Path, options: Mapping[str, Any]) -> nn.Module:
    """The model on the meta device."""
    config = _config(path, options)
    with torch.device("meta"):
        model: nn.Module = class_of(config).from_config(config)
    dtype = as_dtype(options.get("dtype"))
    return (model.to(dtype) if dtype else model).eval()


def _config(path: str | Path, options: Mapping[str, Any]) -> dict[str, Any]:
    file = Path(path) / (options.get("subfolder") or "") / "config.json"
    return json_object(file) if file.is_file() else {}
