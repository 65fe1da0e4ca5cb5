"""Embeddings: rows of the base's table plus those rows of the delta, decoded on demand."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dts.nn.deltas import Piece, Table
from dts.nn.layers.layer import Layer, standalone
from dts.nn.layers.registry import register
from dts.nn.parallel.local import run_local
from dts.nn.routing import beside
from dts.sites import is_distributed
from dts_kernels import Routing


@register(nn.Embedding)
class DTSEmbedding(Layer, nn.Embedding):
    """An `nn.Embedding` that adds each row's deltas.

    Ids [batch, ...] (or [1, ...], shared by all rows, as position ids are).  A task with an enlarged vocabulary has its
    own rows beyond the base's; an id that the row's task does not have raises IndexError as in `nn.Embedding`, and on a
    GPU gives NaN.
    """

    dts_splits = True

    @classmethod
    def supports(cls, module: nn.Module, pieces: dict[str, list[Piece]]) -> bool:
        kinds = {p.kind for parts in pieces.values() for p in parts}
        return set(pieces) <= {"weight"} and "value" not in kinds and module.max_norm is None

    @classmethod
    def from_embedding(cls, embedding: nn.Embedding) -> DTSEmbedding:
        """A layer that shares the parameters of ``embedding`` and leaves it as it is."""
        return standalone(embedding, cls)

    def forward(self, input: Tensor) -> Tensor:
        if is_distributed(input):
            return run_local(self, DTSEmbedding.forward, input)
        ids = input
        dts, delta = self.dts, self.dts.get("weight")
        if not dts.routed() or delta is None or self.dts_swapped():
            return self.unrouted(ids)
        if ids.dtype in (torch.int32, torch.int16, torch.int8, torch.uint8):
            ids = ids.long()  # what kernels read
        if self.num_embeddings != delta.shape[0]:
            raise RuntimeError(
                f"{dts.name or 'an embedding'} was resized from {delta.shape[0]} rows to "
                f"{self.num_embeddings} under its tasks: delete_task() them, and resize before "
                f"load_task()"
            )
        ids, routing = dts.enter(ids)
        beyond = ids >= self.num_embeddings if delta.added.filled else None
        inside = ids if beyond is None else torch.where(beyond, 0, ids)
        y = self._base_rows(inside)
        if delta.plain is not None:
            y = delta.plain.add_embedding(inside, y, routing)
        if delta.raw.filled:
            y = y + delta.raw.looked_up(inside, routing, y.dtype)
        if beyond is not None:
            y = torch.where(beyond[..., None], self._added(ids, beyond, delta.added, routing, y), y)
        return dts.leave(y)

    def _base_rows(self, ids: Tensor) -> Tensor:
        weight = self._parameters["weight"]
        assert weight is not None  # an embedding always has one
        options = self.padding_idx, self.max_norm, self.norm_type, self.scale_grad_by_freq, self.sparse
        return nn.functional.embedding(ids, weight, *options)

    def _added(self, ids: Tensor, beyond: Tensor, table: Table, routing: Routing, y: Tensor) -> Tensor:
        """Whole rows of an enlarged vocabulary; a mixture takes the weighted sum of its tasks that have the id."""
        place = torch.where(beyond, ids - self.num_embeddings, 0)
        unknown = beyond & (place >= beside(ids, table.lengths(routing)))
        rows = table.looked_up(place.clamp(max=table.longest - 1), routing, y.dtype)
        if torch.compiler.is_compiling() or self.dts.state.now().probing:
            return rows
        if ids.is_cuda:  # to look would be to wait for the device, which a graph that is captured cannot
            return torch.where(unknown[..., None], float("nan"), rows)
        if bool(unknown.any()):
            raise IndexError(
                f"{self.dts.name or 'embedding'}: an id of {int(ids.max())} is beyond the vocabulary of its row's task "
                f"({self.num_embeddings} ids in the base)"
            )
        return rows
