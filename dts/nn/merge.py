"""Write one mixture into the weights, so that the layers can be plain again."""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor, nn

from dts.checkpoint.errors import first
from dts.nn.deltas import ParameterDelta
from dts.nn.dequantise import dequantise, in_codes
from dts.nn.layers import Layer
from dts.nn.routing import RoutingState
from dts.sites import Site, raw, sites


def merge(
    model: nn.Module, layers: dict[str, Layer], state: RoutingState, dequantised: bool = False
) -> dict[str, tuple[int, int]]:
    """base + the deltas of the state's one mixture, in place; returns {layer: (rows before, now)} of those resized.

    dequantised: make all quantised layers plain ones first.  Raises ValueError for quantised weights without it.
    Parameters that modules share stay shared unless their values differ now: a task may have untied them.
    """
    if dequantised:
        dequantise(model)
    else:
        quantised = [
            f"{name}.{p}" for name, layer in layers.items() for p in layer.dts.parameters if in_codes(layer, p)
        ]
        if quantised:
            raise ValueError(
                f"cannot write into quantised weights: {first(quantised)}.  "
                f"merge_and_unload(task, dequantise=True) makes a floating-point model of "
                f"all of it; or merge into the base as it was before it was quantised"
            )
    away = [f"{name}.{p}" for name, layer in layers.items() for p in layer.dts.parameters if raw(layer, p).is_meta]
    if away:
        raise ValueError(
            f"cannot write into weights that are offloaded: {first(away, 5)}.  "
            "Merge a model that is whole in memory, or write the full model with dts apply, one tensor at a time"
        )
    shared: dict[int, dict[tuple[int, str], Site]] = defaultdict(dict)  # id of a tensor -> where it is
    for site in sites(model).values():
        shared[id(site.tensor)].setdefault((id(site.module), site.parameter), site)
    for holders in list(shared.values()):
        _write(list(holders.values()), state)
    return {name: change for name, layer in layers.items() if (change := layer.dts_resized()) is not None}


def _write(holders: list[Site], state: RoutingState) -> None:
    """New values of one tensor, which the parameters of several modules may be."""
    tensor, values = holders[0].tensor, []
    deltas = [site.module.dts.get(site.parameter) if isinstance(site.module, Layer) else None for site in holders]
    if not any(deltas):
        return
    for delta in deltas:
        values.append(tensor.detach() if delta is None else merged(delta, tensor, state))
    same = all(value.shape == values[0].shape and torch.equal(value, values[0]) for value in values[1:])
    for site, delta, value in zip(holders, deltas, values):
        if site.parameter not in site.module._parameters:
            site.module._buffers[site.parameter] = values[0] if same else value
        elif not same and delta is not None:
            site.module._parameters[site.parameter] = nn.Parameter(value, tensor.requires_grad)
    if same and isinstance(tensor, nn.Parameter):
        tensor.data = values[0]


def merged(delta: ParameterDelta, tensor: Tensor, state: RoutingState) -> Tensor:
    """One parameter's dense value, with the rows of an enlarged vocabulary."""
    return delta.whole(tensor, state.on(tensor.device)).contiguous()
