"""Models of diffusers: told by their ``config.json``, and built by their library."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn


def class_name(config: Mapping[str, Any] | None) -> str | None:
    """The class that a ``config.json`` of diffusers names; None of any other."""
    name = (config or {}).get("_class_name")
    return name if isinstance(name, str) and "model_type" not in (config or {}) else None


def class_of(config: Mapping[str, Any]) -> Any:
    """Raises ImportError without the library, ValueError where it has no such class."""
    name = class_name(config)
    try:
        import diffusers
    except ImportError as error:
        raise ImportError(f"{name} is a class of diffusers: pip install diffusers") from error
    found = getattr(diffusers, name or "", None)
    if found is None:
        raise ValueError(f"diffusers {diffusers.__version__} has no class {name}, which config.json names")
    return found


def on_meta(config: Mapping[str, Any]) -> nn.Module:
    """The model that a config is of, on the meta device: shapes and names, no weights.  Raises as `class_of`."""
    with torch.device("meta"):
        return class_of(config).from_config(dict(config))
