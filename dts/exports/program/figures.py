"""What a program loses against the model that it was made of: in its answers, and in bytes against the adapters."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dts.adapter.folder import MODEL
from dts.exports.program.load import LoadedProgram
from dts.exports.program.manifest import INPUTS
from dts.exports.program.routed import named
from dts.exports.program.trace import Program, alone, cut, in_turn, largest
from dts.nn import DTSModel
from dts_kernels.dispatch import exact_products


@dataclass(frozen=True)
class Figures:
    """nbytes: of the file, and of its weights where they are beside it;  base: of the base's parameters and buffers
    factors: of the tasks' tensors in the program;  adapters: of the adapters on disk, None where they are not
    difference: largest |program - model| of any finite output, relative to the largest |output|; None: not run
    fast: the same of the model's own fast products, whose x is rounded to 16 bits, against its exact ones
    """

    nbytes: int
    base: int
    factors: int
    adapters: int | None
    difference: float | None
    fast: float

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "bytes": self.nbytes,
            "bytes_base": self.base,
            "bytes_factors": self.factors,
            "bytes_graph": self.nbytes - self.base - self.factors,
            "bytes_adapters": self.adapters,
            "difference": self.difference,
            "difference_of_fast_products": self.fast,
        }


@torch.no_grad()
def measured(model: DTSModel, program: Program, out: Path, loaded: LoadedProgram | None) -> Figures:
    """The figures of a program that was written to ``out``, run by its run-time (None: not run) on its own example.

    Raises RuntimeError where the program gives numbers where the model gives none, or none where the model does.
    """
    inputs = {name: tensor for name, tensor in program.inputs.items() if name not in INPUTS}
    far, fast, size = 0.0, 0.0, 0.0
    for tasks in _selections(program, next(iter(inputs.values())).shape[0]):
        with exact_products():
            exact = named(model(**inputs, **program.options, tasks=tasks))
        own = named(model(**inputs, **program.options, tasks=tasks))
        found = loaded(tasks, **inputs) if loaded is not None else own
        for name, value in exact.items():
            size = max(size, largest(value))
            fast = max(fast, _far(own[name], value, name))
            far = max(far, _far(cut(found[name], value), value, name))
    weights = out.with_name(out.name + ".data")
    files = [out, weights] if weights.exists() else [out]
    sizes = [loaded_task.adapter.folder for loaded_task in model._loaded.values() if loaded_task.adapter is not None]
    folders = [folder for folder in sizes if folder is not None]
    return Figures(
        nbytes=sum(file.stat().st_size for file in files),
        base=program.base,
        factors=sum(program.factors.values()),
        adapters=sum((f / MODEL).stat().st_size for f in folders) if folders else None,
        difference=None if loaded is None else far / size if size else far,
        fast=fast / size if size else fast,
    )


def _selections(program: Program, rows: int) -> list[Any]:
    """Every task alone, the base where it can run, and tasks in turn where rows may have their own."""
    each = alone(program.manifest)
    if not program.manifest.rows:
        return each
    return [[one] * rows for one in each] + [in_turn(program.manifest, rows)]


def _far(found: Tensor, expected: Tensor, name: str) -> float:
    if found.shape != expected.shape or not torch.equal(torch.isfinite(found), torch.isfinite(expected)):
        raise RuntimeError(
            f"the program's {name} {list(found.shape)} is not the model's {list(expected.shape)}, or has numbers where "
            "that has none: do not use the file"
        )
    return largest(torch.where(torch.isfinite(expected), found - expected, 0))
