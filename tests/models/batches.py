"""Inputs of so many rows for each kind of model: makers (model, rows) -> keyword inputs.

Rows differ, and where a model takes a mask one row is shorter than the others.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.models.row import Batch

LENGTH = 8
FIRST = 5  # ids below may have a meaning


def ids(model: Any, rows: int, length: int = LENGTH, vocabulary: int | None = None) -> Tensor:
    size = vocabulary or getattr(model.config.get_text_config(), "vocab_size", 0)
    last = min(size or 40, 40)  # a tiny config's image tokens and the like come after
    return torch.randint(FIRST, last, (rows, length), generator=torch.Generator().manual_seed(rows))


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def text(model: Any, rows: int) -> Batch:
    """Right-padded, as encoders have it."""
    mask = torch.ones(rows, LENGTH, dtype=torch.long)
    mask[0, -2:] = 0
    return {"input_ids": ids(model, rows), "attention_mask": mask}


def prompt_again(model: Any, rows: int) -> Batch:
    """For models whose state no beam can take with it: all of the text is read for every token."""
    return prompt(model, rows) | {"use_cache": False}


def layout(model: Any, rows: int) -> Batch:
    """Words with the places where they stand on a page: left, top, right, bottom."""
    corners = torch.randint(0, 20, (rows, LENGTH, 2), generator=torch.Generator().manual_seed(rows))
    return text(model, rows) | {"bbox": torch.cat([corners, corners + 10], -1)}


def prompt(model: Any, rows: int) -> Batch:
    """Left-padded, as decoders that generate have it."""
    mask = torch.ones(rows, LENGTH, dtype=torch.long)
    mask[0, :2] = 0
    return {"input_ids": ids(model, rows), "attention_mask": mask}


def pair(model: Any, rows: int) -> Batch:
    """What an encoder and a decoder read."""
    return text(model, rows) | {"decoder_input_ids": ids(model, rows, LENGTH - 3)}


def image(model: Any, rows: int) -> Batch:
    given = getattr(model.config, "image_size", 32)
    size = given if isinstance(given, int) else 32
    return {"pixel_values": noise(rows, getattr(model.config, "num_channels", 3), size, size)}


def masked_image(model: Any, rows: int) -> Batch:
    """An image and the random numbers that say which of its patches are left out."""
    return image(model, rows) | {"noise": noise(rows, (model.config.image_size // model.config.patch_size) ** 2)}


def video(model: Any, rows: int) -> Batch:
    size, patch = model.config.image_size, 3
    return {"pixel_values": noise(rows, model.config.num_frames, patch, size, size)}


def wave(model: Any, rows: int) -> Batch:
    return {"input_values": noise(rows, 1200)}


def spectrum(model: Any, rows: int) -> Batch:
    """A spectrogram: as many frames as the model takes, or some; in the order and under the name that it has."""
    config, name = model.config, model.main_input_name
    bins = getattr(config, "num_mel_bins", getattr(config, "feature_projection_input_dim", 16))
    shape = (24, getattr(config, "input_feat_per_channel", bins))
    return {name: noise(rows, *(shape[::-1] if config.model_type == "whisper" else shape))}


def speech(model: Any, rows: int) -> Batch:
    return spectrum(model, rows) | {"decoder_input_ids": ids(model, rows, LENGTH - 3)}


def spoken(model: Any, rows: int) -> Batch:
    return wave(model, rows) | {"decoder_input_ids": ids(model, rows, LENGTH - 3)}


def _seen_size(model: Any) -> int:
    vision = getattr(model.config, "vision_config", model.config)
    size = getattr(vision, "image_size", 32)
    return size if isinstance(size, int) else size[0]


def text_and_image(model: Any, rows: int) -> Batch:
    size = _seen_size(model)
    return text(model, rows) | {"pixel_values": noise(rows, 3, size, size)}


def caption(model: Any, rows: int) -> Batch:
    """An image and the beginning of what is said of it."""
    size = _seen_size(model)
    return {"pixel_values": noise(rows, 3, size, size), "input_ids": ids(model, rows, 4)}


def seen(model: Any, rows: int) -> Batch:
    """An image in the place of so many tokens of a text."""
    config, size = model.config, _seen_size(model)
    token = getattr(config, "image_token_id", getattr(config, "image_token_index", None))
    count = (size // config.vision_config.patch_size) ** 2
    words = torch.cat([torch.full((rows, count), token), ids(model, rows, 5)], 1)
    return {"input_ids": words, "attention_mask": torch.ones_like(words), "pixel_values": noise(rows, 3, size, size)}
