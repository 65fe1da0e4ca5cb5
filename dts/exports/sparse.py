"""Sparse patches of other programs as adapters that keep every bit.

    <parameter>.indices    int32 or int64 [count]: places in the flat parameter, or [dimensions, count]
    <parameter>.values     [count]: what stands there, or what is added

in one .safetensors file, by itself or with a ``delta_metadata.json`` of the parameters' ``shapes`` in a folder.
"""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dts.adapter import Adapter, compress
from dts.checkpoint import Checkpoint, CheckpointError, Lazy, SafetensorsFile, open_checkpoint
from dts.checkpoint.errors import in_lines
from dts.checkpoint.json_file import json_object
from dts.exports.numbers import misfit
from dts.files import Watch, expanded, real

METADATA = "delta_metadata.json"
VALUES = ("new", "differences")
INDICES, NUMBERS = ".indices", ".values"


def import_sparse(
    source: str | Path, base, out: str | Path | None = None, values: str = "new", **options: Any
) -> Adapter:
    """An adapter of method "exact" of a sparse patch of the base.

    source: the .safetensors file, or a folder with one;  base: anything `open_checkpoint` takes;  out: the adapter's
    folder, None keeps it in memory
    values: "new", what takes the base's place, or "differences", which are added in float32 and rounded to its dtype
    options: of `dts.compress`: name, class_names, overwrite, ...
    Raises CheckpointError with all that does not belong to the base, and what `dts.compress` raises.
    """
    if values not in VALUES:
        raise ValueError(f"values is {' or '.join(VALUES)}, not {values!r}")
    watch, opened = Watch(source, base), open_checkpoint(base)
    merged = patched_checkpoint(expanded(source), opened, values)
    progress = watch.during(options.pop("progress", None))
    stem = real(source)
    given = {"name": stem.stem if stem.is_file() else stem.name} | options
    return compress(opened, merged, out, method="exact", progress=progress, **given)


def patched_checkpoint(source: Path, base: Checkpoint, values: str) -> Checkpoint:
    """The fine-tune that base and patch are, whose tensors are made when they are loaded."""
    path, shapes = _found(source)
    file, wrong = SafetensorsFile(path), list[str]()
    names = {name.removesuffix(end) for name in file.tensors for end in (INDICES, NUMBERS) if name.endswith(end)}
    wrong += [f"{name}: neither indices nor values" for name in file.tensors if not name.endswith((INDICES, NUMBERS))]
    tensors: dict[str, Lazy] = {name: base.tensors[name] for name in base.names if name not in base.tied}
    owners = dict[str, str]()
    for name in sorted(names):
        why = _misfit(file, name, base, shapes, values == "new")
        if why:
            wrong.append(f"{name}: {why}")
            continue
        own = base.tied.get(name, name)
        if other := owners.get(own):
            wrong.append(f"{name}: it is one tensor with {other} in the base, and both are patched: keep one")
            continue
        owners[own] = name
        load = partial(_patched, base, own, file, name, values == "new")
        tensors[own] = Lazy(base.shape(own), base.dtype(own), load, partial(base.release, own))
    if not names:
        wrong.append("there are no indices and values in it")
    if wrong:
        raise CheckpointError(in_lines(f"{path} is no sparse patch of {base.source}", wrong))
    return Checkpoint(str(source), tensors, {}, base.config, base.folder, None, base.parts)


def _found(source: Path) -> tuple[Path, dict[str, Any]]:
    """(the file, shapes by name where they are said)."""
    if source.is_file():
        return source, {}
    files = sorted(source.glob("*.safetensors")) if source.is_dir() else []
    if len(files) != 1:
        there = f"has {len(files)} .safetensors files" if source.is_dir() else "is not there"
        raise CheckpointError(f"{source} {there}: give a sparse patch's file, or a folder with one")
    if not (source / METADATA).is_file():
        return files[0], {}
    shapes = json_object(source / METADATA).get("shapes", {})
    if not isinstance(shapes, dict):
        raise CheckpointError(f"{source / METADATA} is damaged: its shapes are {type(shapes).__name__}")
    return files[0], shapes


def _misfit(file: SafetensorsFile, name: str, base: Checkpoint, shapes: dict[str, Any], new: bool) -> str:
    """Why a patch cannot be of the base's tensor, or nothing; its indices and values are read."""
    absent = [end[1:] for end in (INDICES, NUMBERS) if name + end not in file.tensors]
    if absent:
        return f"it has no {absent[0]}"
    if name not in base.tensors:
        return "the base has no such tensor"
    shape = base.shape(name)
    if name in shapes and shapes[name] != list(shape):
        return f"its shape is said to be {shapes[name]}, the base has {list(shape)}"
    indices, values = file.tensors[name + INDICES], file.tensors[name + NUMBERS]
    if indices.dtype not in (torch.int32, torch.int64):
        return f"its indices are {str(indices.dtype).removeprefix('torch.')}, not int32 or int64"
    flat = len(indices.shape) == 1
    if not flat and (len(indices.shape) != 2 or indices.shape[0] != len(shape)):
        return f"its indices are {list(indices.shape)}, neither places in the flat tensor nor {len(shape)} a place"
    if values.shape != indices.shape[-1:]:
        return f"{indices.shape[-1]} indices and values {list(values.shape)} do not belong together"
    numbers = file.load(name + NUMBERS)
    if why := misfit(numbers if new else numbers[:0], base.dtype(name)):  # what a sum is, is seen when it is made
        return why
    at = file.load(name + INDICES).long()
    limits = torch.tensor([math.prod(shape)] if flat else shape, dtype=torch.int64).view(-1, 1)
    rows = at.view(1, -1) if flat else at
    if bool(((rows < 0) | (rows >= limits)).any()):
        return f"an index is beyond its {list(shape)}"
    places = _flat(at, shape)
    if len(places.unique()) < len(places):
        return "an index is there twice"
    return ""


def _flat(at: Tensor, shape: tuple[int, ...]) -> Tensor:
    """int64 [count]: places in the flat tensor."""
    if at.dim() == 1:
        return at
    places = torch.zeros(at.shape[1], dtype=torch.int64)
    for row, size in zip(at, shape):
        places = places * size + row
    return places


def _patched(base: Checkpoint, own: str, file: SafetensorsFile, name: str, new: bool) -> Tensor:
    value = base.load(own).clone()
    places, numbers = _flat(file.load(name + INDICES).long(), tuple(value.shape)), file.load(name + NUMBERS)
    flat = value.view(-1)
    made = numbers if new else _added(flat[places], numbers)
    if why := misfit(made, value.dtype):
        raise CheckpointError(f"{file.path}: {name}: once its differences are added, {why}")
    flat[places] = made.to(value.dtype)
    return value


def _added(before: Tensor, numbers: Tensor) -> Tensor:
    """[count], in float32 or float64 of floats, else in int64."""
    if before.is_floating_point():
        wide = torch.promote_types(torch.float32, before.dtype)
        return before.to(wide) + numbers.to(wide)
    return before.long() + numbers.long()
