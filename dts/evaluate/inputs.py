"""What models are given: tokens of texts, pixels of images, or numbers drawn at random; batches that are padded."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dts.evaluate.data import Examples

LONGEST = 512  # tokens of a text, unless more or fewer are asked for
MADE_UP_TOKENS = 32
SPECIAL = ("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id", "decoder_start_token_id")

Row = dict[str, Any]  # "input_ids", "attention_mask", ... as lists; or "image"


@dataclass(frozen=True)
class Batch:
    """inputs: tensors for a model's forward;  rows: their places among the examples."""

    inputs: dict[str, Tensor]
    rows: list[int]


@dataclass(frozen=True)
class Batches:
    """The examples in batches, in order of length; made again each time they are gone through.

    pad: id of the padding, None where rows cannot be padded;  pixels: turns images into a tensor.
    """

    rows: list[Row]
    size: int
    pad: int | None
    pixels: Callable[[list[Any]], Tensor] | None = None

    def __iter__(self) -> Iterator[Batch]:
        order = sorted(range(len(self.rows)), key=lambda i: len(self.rows[i].get("input_ids", ())))
        size = 1 if self.pad is None and self.pixels is None else self.size
        for first in range(0, len(order), size):
            chosen = order[first : first + size]
            yield Batch(self._tensors([self.rows[i] for i in chosen]), chosen)

    def _tensors(self, rows: list[Row]) -> dict[str, Tensor]:
        if self.pixels is not None:
            return {"pixel_values": self.pixels([row["image"] for row in rows])}
        longest = max(len(row["input_ids"]) for row in rows)
        filled = {"input_ids": self.pad or 0}
        return {
            key: torch.tensor([row[key] + [filled.get(key, 0)] * (longest - len(row[key])) for row in rows])
            for key in rows[0]
        }


def made_up(config: Any, images: bool, count: int, seed: int = 0) -> Examples:
    """Inputs drawn at random for a model of this config: token ids, or pixels of a normal distribution."""
    draw = torch.Generator().manual_seed(seed)
    if images:
        size, channels = getattr(config, "image_size", 224), getattr(config, "num_channels", 3)
        height, width = (size, size) if isinstance(size, int) else size
        drawn = torch.randn(count, channels, height, width, generator=draw)
        return Examples(list(drawn), None, "random pixels", {}, count, True)
    text = config.get_text_config()
    length = min(MADE_UP_TOKENS, getattr(text, "max_position_embeddings", None) or MADE_UP_TOKENS)
    special = {getattr(text, name, None) for name in SPECIAL}
    ordinary = torch.tensor([i for i in range(text.vocab_size) if i not in special])
    ids = ordinary[torch.randint(len(ordinary), (count, length), generator=draw)].tolist()
    if getattr(config, "is_encoder_decoder", False):  # the last of these is where such a classifier looks
        ids = [row[:-1] + [config.eos_token_id] for row in ids]
    return Examples(ids, None, "random tokens", {}, count, True)


def encoded(
    examples: Examples, tokenizer: Callable[[], Any], config: Any, longest: int | None, most: int | None = None
) -> list[Row]:
    """Tokens of each example, at most ``longest``.  tokenizer: called only where there are texts;  most: that the model
    takes, None where it does not say.

    Raises ValueError for token ids that the model does not have, and for a row longer than it takes.
    """
    if longest is not None and most is not None and longest > most:
        raise ValueError(f"a text of {longest} tokens is longer than the {most} that the model takes")
    if examples.columns.get("text") == "image":
        raise ValueError(f"{examples.source} has images, and the model reads texts: say which column, by --text")
    kinds = {"token ids" if isinstance(item, list | dict) else "a text" for item in examples.inputs}
    if len(kinds) > 1:
        raise ValueError(f"{examples.source}: some rows have {' and some '.join(sorted(kinds))}: give one of them")
    limit = longest or min(LONGEST, most or LONGEST)
    if isinstance(examples.inputs[0], list | dict):
        rows = [item if isinstance(item, dict) else {"input_ids": item} for item in examples.inputs]
        vocabulary = config.get_text_config().vocab_size
        for number, ids in enumerate((row["input_ids"] for row in rows), 1):
            if not ids or not all(type(i) is int and 0 <= i < vocabulary for i in ids):
                raise ValueError(
                    f"{examples.source}: row {number} is no list of token ids from 0 to {vocabulary - 1}, the model's "
                    "vocabulary"
                )
        keys = {key: None for row in rows for key in row}
        return [_row({key: row.get(key, [0] * len(row["input_ids"]))[:limit] for key in keys}) for row in rows]
    tokens = tokenizer()
    limit = longest or min(limit, tokens.model_max_length)
    pairs = isinstance(examples.inputs[0], tuple)
    first = [item[0] for item in examples.inputs] if pairs else examples.inputs
    second = [item[1] for item in examples.inputs] if pairs else None
    found = tokens(first, second, truncation=True, max_length=limit)
    rows = [{key: list(found[key][i]) for key in found} for i in range(len(first))]
    empty = [i for i, row in enumerate(rows, 1) if not row["input_ids"]]
    if empty:
        raise ValueError(f"{examples.source}: row {empty[0]} has no tokens: leave it out")
    return rows


def _row(given: Row) -> Row:
    return given | {"attention_mask": [1] * len(given["input_ids"])}


def pixels_of(processor: Any) -> Callable[[list[Any]], Tensor]:
    """Images, or their files, as `pixel_values` [N, channels, height, width]."""

    def pixels(images: list[Any]) -> Tensor:
        from PIL import Image

        opened = []
        for image in images:
            try:
                opened.append((Image.open(image) if isinstance(image, str | Path) else image).convert("RGB"))
            except (OSError, AttributeError) as error:
                raise ValueError(f"{image} cannot be read as an image: {error}") from None
        return processor(images=opened, return_tensors="pt")["pixel_values"]

    return pixels
