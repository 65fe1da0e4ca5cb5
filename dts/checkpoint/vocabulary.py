"""Vocabularies of other sizes: rows of embeddings that only one of two models has."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from dts.checkpoint.checkpoint import Checkpoint, Lazy

SHARED = "shared"


def resized(config: dict, rows: dict[int, int]) -> dict:
    """A config with every size of a vocabulary {before: now} brought up to date, in its parts too."""
    config = {key: resized(value, rows) if isinstance(value, dict) else value for key, value in config.items()}
    return config | {key: rows[config[key]] for key in ("vocab_size",) if config.get(key) in rows}


def is_size(config: dict | None, rows: int) -> bool:
    """Could a vocabulary have as many rows, by the sizes that a config names?  Any, where it names none."""
    found = list(_sizes(config or {}))
    return not found or rows in found


def _sizes(config: dict) -> Iterator[int]:
    for key, value in config.items():
        if isinstance(value, dict):
            yield from _sizes(value)
        elif key == "vocab_size" and isinstance(value, int):
            yield value


def with_rows_of(
    base: Checkpoint, finetuned: Checkpoint, origin: dict[str, str], related: Callable[[str, str], bool]
) -> Checkpoint:
    """The fine-tune with the rows beyond its vocabulary that the base has: they stay the base's.

    origin: its names -> the base's;  related: do the rows that both have mean the same?
    """
    tensors, rows = dict(finetuned.tensors), dict[int, int]()
    fewer = {}
    for name, base_name in origin.items():
        ours, theirs = finetuned.shape(name), base.shape(base_name)
        if 0 < len(ours) == len(theirs) <= 2 and ours[1:] == theirs[1:] and ours[0] < theirs[0]:
            fewer[name] = base_name
            if len(ours) == 2 and is_size(finetuned.config, ours[0]) and related(name, base_name):
                rows[ours[0]] = theirs[0]
    for name, base_name in fewer.items():  # biases of as many rows go with these, whatever they are
        if rows.get(finetuned.shape(name)[0]) == base.shape(base_name)[0]:
            tensors[name] = _padded(finetuned.tensors[name], base.tensors[base_name])
    if not rows:
        return finetuned
    return replace(finetuned, tensors=tensors, config=finetuned.config and resized(finetuned.config, rows))


def _padded(ours: Lazy, theirs: Lazy) -> Lazy:
    def load() -> Tensor:
        return torch.cat([ours.load(), theirs.load()[ours.shape[0] :].to(ours.dtype)])

    return Lazy(theirs.shape, ours.dtype, load, ours.release)
