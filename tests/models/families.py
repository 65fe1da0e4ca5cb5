"""Rows of families of transformers: a line for those that need nothing but to be small."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import transformers
from torch import nn

from tests.models.row import Maker, Row
from tests.models.tiny import tiny


def build(kind: Any, given: Mapping[str, Any]) -> nn.Module:
    """A tiny random model of a class, whose ``generate`` ends by length alone."""
    model = kind(tiny(kind.config_class, given))
    settings = getattr(model, "generation_config", None)
    if settings is not None:
        settings.eos_token_id, settings.pad_token_id = None, 0
        settings.bos_token_id, settings.decoder_start_token_id = 1, 2
    return model


def families(
    section: str,
    names: str,
    kinds: Mapping[str, Any] | str,
    inputs: Maker,
    prompt: Maker | None = None,
    outputs: tuple[str, ...] = (),
    what: str = "",
    fails: str = "",
    **given: Any,
) -> list[Row]:
    """A row for each name.

    kinds: family -> class, as transformers' own tables have it, or one class;  what: a family of several rows does in
    this one;  given: fields of the config, those of a config within it nested.
    """
    rows = []
    for name in names.split():
        found = kinds if isinstance(kinds, str) else kinds[name]
        kind = found if isinstance(found, str) else found[0]
        make: Callable[[], nn.Module] = lambda kind=kind: build(getattr(transformers, kind), given)  # noqa: E731
        rows.append(Row(f"{name} {what}".strip(), section, kind, make, inputs, prompt, outputs, fails))
    return rows
