"""What a router is to know of a task's inputs, from a file of examples."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from dts.adapter.route import InputStatistics
from dts.evaluate import inputs, models
from dts.evaluate.data import Examples
from dts.evaluate.inputs import Batches
from dts.integrations.positions import positions
from dts.unseen import input_statistics

BATCH = 16  # rows


def statistics_of(
    base: str,
    examples: Examples,
    *,
    tokenizer: str | Path | None = None,
    longest: int | None = None,
    device: str = "cpu",
    trusted: bool = False,
    layer: str | None = None,
) -> InputStatistics:
    """Of the examples of one task, as its base sees them.

    base: folder or hub id;  tokenizer: folder of the task's own, or of its image processor, by default the base's;
    longest: tokens of a text;  trusted: code of the base's own may run (``trust_remote_code``);  layer: as of
    `dts.unseen.input_statistics`.
    Only the first layers run, but the whole base is loaded.
    Raises ValueError that says what does not fit.
    """
    checkpoint = models.opened(base, "base")
    model = models.without_head(checkpoint, device, trusted)
    batches = _batches(examples, model, [tokenizer, checkpoint.folder], longest, trusted)

    def moved() -> Iterator[dict[str, Tensor]]:
        for batch in batches:
            yield {name: tensor.to(device) for name, tensor in batch.inputs.items()}

    return input_statistics(model, moved(), layer)


def _batches(examples: Examples, model: Any, places: list, longest: int | None, trusted: bool) -> Batches:
    """places: where tokenizer and image processor are looked for."""
    if examples.columns.get("text") == "image":
        processor = models.image_processor_of(*places, trusted=trusted)
        return Batches([{"image": image} for image in examples.inputs], BATCH, None, inputs.pixels_of(processor))
    read = partial(models.tokenizer_of, *places, trusted=trusted)
    rows = inputs.encoded(examples, read, model.config, longest, positions(model))
    return Batches(rows, BATCH, getattr(model.config, "pad_token_id", None))
