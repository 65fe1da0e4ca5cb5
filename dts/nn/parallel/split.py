"""What this process has of a layer's parameters, and cutting what a task changes to that.

A linear layer is split by its outputs (rows of its weight: "column" in the words of tensor parallelism, which writes
x W) or by its inputs (columns, "row").  Of a difference U diag(sigma) V^T the first has rows of U and all of V, the
second rows of V and all of U.  So each process computes its part of x Delta^T from its part of x alone, and where the
parts are to be added up they are added to those of the base, which is going to send them anyway.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from dts.codec.shards import shard
from dts.nn.deltas import Piece
from dts.sites import is_distributed, local, raw


@dataclass(frozen=True)
class Split:
    """Of one layer.

    mesh: of one dimension;  axis: of the weight that is split, 0: rows, 1: columns, None: each process has all of it
    rows, columns: of the weight, those that this process has;  shape: of all of it, empty without a weight
    first: this process adds what is to be added once
    """

    mesh: Any
    axis: int | None
    rows: range
    columns: range
    shape: tuple[int, ...]
    first: bool

    def wrong(self, parameter: str, piece: Piece) -> str:
        """Why a piece cannot be split, or nothing."""
        if self.axis is None:
            return ""
        if piece.kind in ("value", "added"):
            what = "brings it whole" if piece.kind == "value" else "has more rows of it"
            return f"the task {what}, and it is split: leave this module out of the plan"
        if piece.kind == "exact":
            return "the task is exact, bit for bit, which sums over several processes are not: use its packed form"
        if piece.expert is not None:
            return "experts that are split run no tasks: leave them out of the plan"
        return ""

    def cut(self, parameter: str, piece: Piece) -> Piece | None:
        """What of a piece belongs here; None where nothing does."""
        if self.axis is None:
            return piece
        if parameter == "bias" and self.axis == 1:
            return piece if self.first else None
        key = self.rows, self.columns
        if key not in piece.cuts:  # modules that share a parameter share what is cut
            piece.cuts[key] = self._cut(piece, vector=parameter == "bias")
        return piece.cuts[key]

    def _cut(self, piece: Piece, vector: bool) -> Piece | None:
        at = piece.row or 0  # of the layer's rows, where the piece begins
        size = piece.factors.shape[0] if piece.kind == "factors" else piece.tensor.shape[0]
        rows = range(max(self.rows.start - at, 0), min(self.rows.stop - at, size))
        if not rows:
            return None
        row = None if piece.row is None else max(at - self.rows.start, 0)
        if piece.kind == "factors":
            own = shard(piece.factors, rows, self.columns)
            return None if own is None else Piece("shard", own, row=row)
        part = piece.tensor[rows.start : rows.stop]
        part = part if vector else part[:, self.columns.start : self.columns.stop]
        return replace(piece, data=part.clone(), row=row, cuts={})


def split_of(module: nn.Module) -> Split | None:
    """How the parameters of a module lie on processes; None where none of them is a `DTensor`.

    Raises ValueError, without the module's name, for what no layer of ours computes with.
    """
    own = {name: p for name, p in module._parameters.items() if is_distributed(p)}
    if not own:
        return None
    from torch.distributed.tensor import Replicate, Shard

    tensors: dict[str, Any] = own
    mesh = next(iter(tensors.values())).device_mesh
    if mesh.ndim != 1:
        names = mesh.mesh_dim_names or tuple(map(str, mesh.shape))
        raise ValueError(
            f"its parameters lie on a mesh of {mesh.ndim} dimensions ({', '.join(names)}): tasks run on the one "
            f'dimension of tensor parallelism, mesh["tp"]'
        )
    axes: dict[str, int | None] = {}
    for name, parameter in module._parameters.items():
        if parameter is None:
            continue
        if name not in tensors or tensors[name].device_mesh != mesh:
            raise ValueError(f"its {name} is not on the mesh that its {next(iter(own))} is on")
        (placement,) = tensors[name].placements
        if type(placement) is not Shard and type(placement) is not Replicate:
            raise ValueError(f"its {name} is placed as {placement}, and tasks know Shard and Replicate")
        axes[name] = placement.dim % parameter.dim() if type(placement) is Shard else None
    weight, bias = axes.get("weight"), axes.get("bias")
    if all(axis is None for axis in axes.values()):
        return _at(mesh, None, tensors.get("weight"))
    if set(axes) - {"weight", "bias"} or tensors["weight"].dim() != 2 or "weight" not in axes:
        raise ValueError(f"its parameters {sorted(axes)} are split, and tasks know linear layers and embeddings so")
    if "bias" in axes and bias != (0 if weight == 0 else None):
        raise ValueError("its bias is not split as its weight is: outputs with it, or whole where inputs are")
    return _at(mesh, weight, tensors["weight"])


def _at(mesh: Any, axis: int | None, weight: Any) -> Split:
    """With the rows and columns of this process: equal runs, the last ones shorter or empty."""
    rank, processes = mesh.get_local_rank(), mesh.size()
    shape = () if weight is None else tuple(weight.shape)
    parts = [range(size) for size in (*shape[:1], *shape[1:2])]
    while len(parts) < 2:
        parts.append(range(0))
    if axis is not None:
        size = shape[axis]
        each = -(-size // processes)
        parts[axis] = range(min(rank * each, size), min((rank + 1) * each, size))
        if len(parts[axis]) != weight._local_tensor.shape[axis]:
            raise ValueError(f"this process has {weight._local_tensor.shape[axis]} of {size}, not the {parts[axis]}")
        if -(-size // max(each, 1)) < processes:
            raise ValueError(f"{processes} processes split {size} {('rows', 'columns')[axis]}: one has none")
    return Split(mesh, axis, parts[0], parts[1], shape, rank == 0)


def local_shape(module: nn.Module, name: str) -> tuple[int, ...]:
    """Of what this process has of a parameter."""
    return tuple(local(raw(module, name)).shape)


def check(split: Split, pieces: dict[str, list[Piece]]) -> list[str]:
    """Everything of these pieces that cannot be split, without the module's name."""
    return [f"{name}: {why}" for name, parts in pieces.items() for piece in parts if (why := split.wrong(name, piece))]
