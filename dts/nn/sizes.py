"""How many bytes a task takes in a model's memory, from what its folder says: no tensor is read for it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from dts.adapter import Adapter
from dts.adapter.folder import read_layout
from dts.adapter.rows import entry_tensors
from dts.checkpoint.safetensors_file import Layout, layout_of
from dts.nn.deltas.exact import INDEX as INDEX_EXACT
from dts.nn.deltas.exact import is_sparse
from dts_kernels.rounded import readable

# Python's and PyTorch's objects, and what malloc rounds up, of one tensor of an adapter.  *Measured* by
# `python -m benchmarks.resident --objects`: 510 bytes of MiniLM's sketches, 180 of a model of components
OBJECTS = 600
INDEX, LOOKUP = 8, 4  # bytes of a kept row's or column's number, and of each row in the table that finds it
WIDE = 4  # bytes of a number that was stored in few bits


def task_bytes(config: Mapping[str, Any], stored: Layout) -> int:
    """Bytes of memory of a loaded task on a CPU.

    config: of the adapter;  stored: dtype and shape of its tensors, by their names in the file.
    Factors, samples and, where there is C to read them, vectors in few bits lie there as they do on disk, other vectors
    and heads in the stack that rows choose from, rounded heads as 32-bit numbers.  The adapter itself is forgotten
    (`DTSModel.forget_adapter`).
    """
    total = 0
    for key, (dtype, shape) in stored.items():
        name, _, kind = key.rpartition(".")
        row = config["tensors"].get(name, {})
        nbytes = math.prod(shape) * dtype.itemsize
        few = row.get("kind") == "delta" and len(row["shape"]) == 1 and readable()
        if kind in ("rows", "columns"):
            total += _index(kind, nbytes, key, stored, row)
        elif kind in ("delta", "value") and "bits" in row and not few:
            total += math.prod(row["shape"]) * WIDE
        elif kind == "delta" and row.get("scale") is not None:
            total += math.prod(shape) * WIDE
        elif kind != "scales" or few:
            total += nbytes
    return total + OBJECTS * len(config["tensors"]) + sum(_exact(row, config) for row in config["tensors"].values())


def exact_tensors(config: Mapping[str, Any]) -> tuple[int, int]:
    """Of the tensors that are kept bit for bit, (how many a model holds as what changed, how many whole)."""
    found = [is_sparse(*_of_patch(row, config)) for row in config["tensors"].values() if _is_patch(row)]
    return sum(found), len(found) - sum(found)


def _is_patch(row: Mapping[str, Any]) -> bool:
    return row["kind"] == "exact" and bool(row["changed"])


def _of_patch(row: Mapping[str, Any], config: Mapping[str, Any]) -> tuple[int, int, int]:
    """(elements that changed, all of them, bytes of one)."""
    dtype: torch.dtype = getattr(torch, row.get("dtype", config["finetuned"]["dtype"]))
    return row["changed"], math.prod(row["shape"]), dtype.itemsize


def _exact(row: Mapping[str, Any], config: Mapping[str, Any]) -> int:
    """Bytes of the values that a patch makes, beside the patch itself: of those that changed, or of all."""
    if not _is_patch(row):
        return 0
    changed, elements, itemsize = _of_patch(row, config)
    sparse = is_sparse(changed, elements, itemsize)
    return changed * (INDEX_EXACT + itemsize) if sparse else elements * itemsize


def _index(kind: str, nbytes: int, key: str, stored: Layout, row: Mapping[str, Any]) -> int:
    """Bytes of which rows or columns factors cover."""
    side = "u" if kind == "rows" else "v"
    factor = stored.get(f"{key.rpartition('.')[0]}.{side}")
    shape = row.get("shape") or [0]
    kept = min(factor[1][0], max(shape)) if factor else nbytes
    return INDEX * kept + (LOOKUP * shape[0] if kind == "rows" else 0)


def bytes_of(adapter: Adapter) -> int:
    """`task_bytes` of an adapter that is loaded."""
    stored: Layout = {}
    for entry in adapter.entries.values():
        stored |= layout_of(entry_tensors(entry).items())
    return task_bytes(adapter.config, stored)


def bytes_at(folder: Path) -> int:
    """`task_bytes` of an adapter on disk; raises AdapterError."""
    return task_bytes(*read_layout(folder))
