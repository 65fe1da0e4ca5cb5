"""Any other module with changed parameters: run once a task, on that task's rows, with those parameters dense.

Class tokens, position tables, fused experts, grouped convolutions: one layer's parameters of one task are dense at a
time, and only while they are used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from dts.nn.deltas import ParameterDelta, Piece
from dts.nn.layers.kept import PLAIN
from dts.nn.layers.layer import Layer, base_class
from dts.nn.layers.layer_deltas import REPEATED, RowsApart
from dts.nn.routing import groups
from dts.nn.trees import closed, opened
from dts.sites import has_codes, is_quantised, raw
from dts_kernels import Routing


class Owner(Layer):
    """A module whose own forward runs with the parameters of one mixture at a time."""

    @classmethod
    def supports(cls, module: nn.Module, pieces: dict[str, list[Piece]]) -> bool:
        return True

    def load(self, slot: int, pieces: dict[str, list[Piece]]) -> None:
        """Raises ValueError for weights that are codes: they have no dense tensor that could take their place."""
        for name, parts in pieces.items():
            codes = raw(self, name)
            if is_quantised(self, name) or has_codes(codes) and any(p.kind in ("factors", "raw") for p in parts):
                raise ValueError(
                    f"the {name} of {base_class(self).__name__} is quantised ({str(codes.dtype).removeprefix('torch.')}"
                    f" {list(codes.shape)}), and this is no layer that tasks run beside: only linear layers and "
                    f"embeddings may be quantised under tasks; leave it out when the base is quantised"
                )
        super().load(slot, pieces)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        dts = self.dts
        if not dts.routed() or self.dts_swapped():
            return self.unrouted(*args, **kwargs)
        now = dts.state.now()
        if now.rows == 1:
            return self._run(args, kwargs)
        places_in, places_out = (now.axes or {}).get(dts.name, (None, None))
        leaves, spec = tree_flatten((args, kwargs))
        tensors = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
        if places_in is not None and len(places_in) != len(tensors):
            raise RowsApart(
                f"{dts.name} got {len(tensors)} tensors where it got {len(places_in)} when the rows of the batch were "
                "located",
                dts.name,
                "it is not always given as many tensors",
            )
        axes = dict(zip(tensors, places_in or [self._guess(leaves[i]) for i in tensors]))
        results, places = [], []
        for mixture, rows in groups(now.mixtures):
            part = list(leaves)
            for i, axis in axes.items():
                if axis >= 0:
                    part[i] = take_rows(leaves[i], axis, rows, now.rows)
            group_args, group_kwargs = tree_unflatten(part, spec)
            with dts.state.using([mixture], now.missing, axis=now.axis, called=now.called, padded=True):
                results.append(_repeated(self._run(group_args, group_kwargs), places_out, len(rows)))
            places += rows
        last = results[-1]
        results = [opened(result) for result in results]
        if any(type(leaf) not in PLAIN and not isinstance(leaf, Tensor) for leaf in tree_leaves(results)):
            raise RowsApart(
                f"{dts.name} returns an object", dts.name, "it returns an object, of which rows are no part"
            )
        places_out = places_out and [0 if axis == REPEATED else axis for axis in places_out]
        return closed(last, join_rows(results, places, places_out))

    def _guess(self, tensor: Tensor) -> int:
        return 0 if tensor.dim() and tensor.shape[0] and tensor.shape[0] % self.dts.state.rows == 0 else -1

    def _run(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        return self.forward_made(_dense, *args, **kwargs)


def _dense(delta: ParameterDelta, base: Tensor, routing: Routing) -> Tensor:
    return delta.whole(base, routing) if delta.exact else delta.dense(base, routing)


def _repeated(result: Any, axes: Sequence[int] | None, rows: int) -> Any:
    """An output with ``rows`` copies of what it has for all rows alike, where axes say REPEATED."""
    if axes is None or REPEATED not in axes:
        return result
    leaves, spec = tree_flatten(opened(result))
    tensors = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
    for i, axis in zip(tensors, axes):
        if axis == REPEATED:
            leaves[i] = leaves[i].expand(rows, *leaves[i].shape[1:])
    return closed(result, tree_unflatten(leaves, spec))


def take_rows(tensor: Tensor, axis: int, rows: list[int], count: int) -> Tensor:
    """The given rows of a tensor whose ``axis`` holds ``count`` rows, each a block of equal size."""
    blocks = tensor.unflatten(axis, (count, -1))
    return blocks.index_select(axis, torch.tensor(rows, device=tensor.device)).flatten(axis, axis + 1)


def join_rows(results: list[Any], places: list[int], axes: Sequence[int] | None, drop: bool = False) -> Any:
    """Put the outputs of groups of rows together in the batch's order.

    results: one nested output a group;  places: the row of each output row, group after group;
    axes: the batch axis of each tensor in an output, -1 where it has none (default: 0 everywhere);
    drop: None, instead of an error, for a tensor that has no batch axis and differs between the groups.
    """
    flat = [tree_flatten(result) for result in results]
    order = torch.tensor(places).argsort()
    joined, tensor = list(flat[0][0]), 0
    for i, leaf in enumerate(joined):
        if not isinstance(leaf, Tensor):
            continue
        axis = 0 if axes is None else axes[tensor]
        tensor += 1
        parts = [leaves[i] for leaves, _ in flat]
        if axis < 0:
            if all(part.shape == leaf.shape and torch.equal(part, leaf) for part in parts):
                continue
            joined[i] = None
            if not drop:
                raise RuntimeError(f"an output {list(leaf.shape)} without a batch axis depends on the task")
            continue
        sizes = {part.shape[:axis] + part.shape[axis + 1 :] for part in parts}
        if len(sizes) > 1:
            raise ValueError(
                f"the rows' tasks give outputs of different sizes, {sorted(map(list, sizes))} a row, which no one "
                f"tensor holds: give rows of one of these tasks at a time"
            )
        whole = torch.cat(parts, axis)
        joined[i] = take_rows(whole, axis, order.tolist(), len(places))
    return tree_unflatten(joined, flat[0][1])
