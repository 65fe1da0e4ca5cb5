"""A layer's forward where its input is a `DTensor`: of the local tensors, by the same code as without processes.

What comes out is placed as the base's own output would be: split where the outputs are, a part of a sum where the
inputs are, which whoever asked for it adds up as ever.  Nothing is sent here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from dts.nn.parallel.split import Split
from dts.sites import is_distributed


def run_local(layer: Any, forward: Callable[[Any, Tensor], Tensor], x: Tensor) -> Tensor:
    """``forward`` of a layer of `dts.nn.layers` with its own part of everything.

    Raises RuntimeError for an input that is placed otherwise than the layer's parameters need.
    """
    from torch.distributed.tensor import DTensor, Partial, Replicate, Shard

    given: Any = x
    split: Split | None = layer.dts.split
    name = layer.dts.name or "a layer"
    if split is None or given.device_mesh != split.mesh:
        where = "whole" if split is None else f"on {split.mesh}"
        raise RuntimeError(f"{name} got a DTensor on {given.device_mesh}, and its parameters are {where}")
    (placement,) = given.placements
    table, last = isinstance(layer, nn.Embedding), given.dim() - 1
    along = placement.dim % given.dim() if type(placement) is Shard else None
    rows = layer.dts.state.now().rows
    out: Any
    if split.axis == 1 and not table:
        fits, out = along == last, Partial()
    elif split.axis is None:
        fits, out = type(placement) is Replicate or along is not None and (table or along != last), placement
    else:
        fits, out = type(placement) is Replicate, Partial() if table and split.axis == 0 else Shard(-1)
    if not fits or along == 0 and rows > 1 and last > 0:
        raise RuntimeError(f"{name} got an input that is placed as {placement}, which is not how its parameters lie")
    partial = (split.axis == 0 or table) and split.axis is not None
    local = given.to_local(grad_placements=[Partial()] if partial and given.is_floating_point() else None)
    twin = _twin(layer, split, summed=along is not None)
    y = _rows_of_table(twin, forward, local, split) if table and split.axis == 0 else forward(twin, local)
    return DTensor.from_local(y, split.mesh, [out], run_check=False, **_size(given, y, out, split, table))


def _size(x: Any, y: Tensor, out: Any, split: Split, table: bool) -> dict[str, Any]:
    """Shape and stride of all of the output: parts may be of different sizes."""
    outputs = split.shape[1 if table else 0] if len(split.shape) == 2 else x.shape[-1]
    shape = torch.Size((*x.shape, outputs) if table else (*x.shape[:-1], outputs))
    return {"shape": shape, "stride": torch.empty(shape, device="meta").stride()}


def _twin(layer: Any, split: Split, summed: bool) -> Any:
    """The layer with its own part of each parameter; threads do not meet.  summed: inputs are parts of all rows."""
    from torch.distributed.tensor import Partial

    twin = object.__new__(type(layer))
    twin.__dict__ = dict(layer.__dict__)
    own: dict[str, Any] = dict(layer.__dict__["_parameters"])
    for name, parameter in own.items():
        if not is_distributed(parameter):
            continue
        once = name == "bias" and split.axis == 1  # it is added to one part of the sum
        partial = once or summed and split.axis is None
        own[name] = parameter.to_local(grad_placements=[Partial()] if partial else None)
        if once and not split.first:
            own[name] = own[name] * 0 if torch.is_grad_enabled() and own[name].requires_grad else None
    twin.__dict__["_parameters"] = own
    if isinstance(layer, nn.Embedding):
        twin.num_embeddings, twin.embedding_dim = own["weight"].shape
        if layer.padding_idx is not None:
            inside = layer.padding_idx in split.rows
            twin.padding_idx = layer.padding_idx - split.rows.start if inside else None
    return twin


def _rows_of_table(twin: Any, forward: Callable[[Any, Tensor], Tensor], ids: Tensor, split: Split) -> Tensor:
    """Of ids that are other processes' there are zeros.  Raises IndexError for ids that nobody has."""
    if ids.is_cpu and bool(((ids < 0) | (ids >= split.shape[0])).any()):
        raise IndexError(f"{twin.dts.name or 'embedding'}: ids must be 0 to {split.shape[0] - 1}")
    inside = (ids >= split.rows.start) & (ids < split.rows.stop)
    y = forward(twin, torch.where(inside, ids - split.rows.start, 0))
    return torch.where(inside[..., None], y, 0)
