"""Vocabularies of other sizes: rows of embeddings that only one of two models has."""

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from dts.checkpoint.checkpoint import Checkpoint, Lazy
from dts.sums import energy, squared_difference

SHARED = "shared"


def resized(config: dict, rows: dict[int, int]) -> dict:
    """A config with every size of a vocabulary {before: now} brought up to date, in its parts too."""
    config = {key: resized(value, rows) if isinstance(value, dict) else value for key, value in config.items()}
    return config | {key: rows[config[key]] for key in ("vocab_size",) if config.get(key) in rows}


def _is_size(config: dict | None, rows: int) -> bool:
    """Could a vocabulary have as many rows, by the sizes that a config names?  Any, where it names none."""
    found = list(_sizes(config or {}))
    return not found or rows in found


def _sizes(config: dict) -> Iterator[int]:
    for key, value in config.items():
        if isinstance(value, dict):
            yield from _sizes(value)
        elif key == "vocab_size" and isinstance(value, int):
            yield value


def related(base: Checkpoint, finetuned: Checkpoint, name: str, base_name: str) -> bool:
    """Is the difference on the rows both have smaller than the rows?  It is where a vocabulary grew; where a head was
    replaced it is larger, by a factor of about sqrt(2).  A bias goes with its weight."""
    if name.endswith(".bias") and base_name.endswith(".bias"):
        weight, base_weight = (n.removesuffix("bias") + "weight" for n in (name, base_name))
        if weight in finetuned.tensors and base_weight in base.tensors:
            return related(base, finetuned, weight, base_weight)
    rows = min(finetuned.shape(name)[0], base.shape(base_name)[0])
    before = base.load(base_name)[:rows]
    return squared_difference(finetuned.load(name)[:rows], before) < energy(before)


def shared_rows(base: Checkpoint, finetuned: Checkpoint, origin: dict[str, str]) -> dict[int, int]:
    """{rows of a matrix of the fine-tune that are the first ones of the base's: rows of that}, of smaller vocabularies.

    origin: the fine-tune's names -> the base's.
    """
    return {
        finetuned.shape(name)[0]: base.shape(base_name)[0]
        for name, base_name in _fewer(base, finetuned, origin).items()
        if len(finetuned.shape(name)) == 2
        and _is_size(finetuned.config, finetuned.shape(name)[0])
        and related(base, finetuned, name, base_name)
    }


def _fewer(base: Checkpoint, finetuned: Checkpoint, origin: dict[str, str]) -> dict[str, str]:
    """Those of which the base has more rows, which may be biases."""
    shapes = {name: (finetuned.shape(name), base.shape(base_name)) for name, base_name in origin.items()}
    return {
        name: origin[name]
        for name, (ours, theirs) in shapes.items()
        if 0 < len(ours) == len(theirs) <= 2 and ours[1:] == theirs[1:] and ours[0] < theirs[0]
    }


def with_rows_of(base: Checkpoint, finetuned: Checkpoint, origin: dict[str, str]) -> Checkpoint:
    """The fine-tune with the rows beyond its vocabulary that the base has: they stay the base's.

    origin: its names -> the base's.
    """
    rows = shared_rows(base, finetuned, origin)
    if not rows:
        return finetuned
    tensors = dict(finetuned.tensors)
    for name, base_name in _fewer(base, finetuned, origin).items():  # biases of as many rows too, whatever they are
        if rows.get(finetuned.shape(name)[0]) == base.shape(base_name)[0]:
            tensors[name] = _padded(finetuned.tensors[name], base.tensors[base_name])
    return replace(finetuned, tensors=tensors, config=finetuned.config and resized(finetuned.config, rows))


def _padded(ours: Lazy, theirs: Lazy) -> Lazy:
    def load() -> Tensor:
        return torch.cat([ours.load(), theirs.load()[ours.shape[0] :].to(ours.dtype)])

    return Lazy(theirs.shape, ours.dtype, load, ours.release)
