"""Write one mixture into the weights, so that the layers can be plain again."""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor, nn

from dts.nn.deltas import ParameterDelta
from dts.nn.layer import Layer, parameter_shape, raw
from dts.nn.names import Site, sites
from dts.nn.routing import RoutingState


def merge(model: nn.Module, layers: dict[str, Layer], state: RoutingState) -> dict[str, tuple[int, int]]:
    """base + the deltas of the state's one mixture, in place; returns {layer: (rows before, now)} of those resized.

    Parameters that modules share stay shared unless their values differ now: a task may have untied them.
    """
    quantised = [
        f"{name}.{p}"
        for name, layer in layers.items()
        for p in layer.dts.parameters
        if tuple(raw(layer, p).shape) != parameter_shape(layer, p)
    ]
    if quantised:
        raise ValueError(f"cannot write into quantised weights: {', '.join(quantised)}")
    shared = defaultdict(dict)  # id of a tensor -> {(id of a module, parameter): where it is}
    for site in sites(model).values():
        shared[id(site.tensor)].setdefault((id(site.module), site.parameter), site)
    for holders in list(shared.values()):
        _write(list(holders.values()), state)
    return {name: change for name, layer in layers.items() if (change := _resize(layer)) is not None}


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


def _resize(layer: Layer) -> tuple[int, int] | None:
    """A layer's own idea of its sizes."""
    rows = None
    if isinstance(layer, nn.Linear):
        weight = raw(layer, "weight")
        rows = layer.out_features, weight.shape[0]
        layer.out_features, layer.in_features = weight.shape
    elif isinstance(layer, nn.Embedding):
        rows = layer.num_embeddings, raw(layer, "weight").shape[0]
        layer.num_embeddings = rows[1]
    return rows if rows and rows[0] != rows[1] else None
