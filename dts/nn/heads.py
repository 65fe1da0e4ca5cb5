"""Layers that a task brings whole: which rows lack them, and how many outputs a row has."""

from __future__ import annotations

from collections.abc import Mapping

from dts.nn.layers import Layer
from dts.nn.routing import Mixture


def missing_heads(layers: Mapping[str, Layer], mixtures: list[Mixture], names: Mapping[int, str]) -> dict[str, str]:
    """Heads that some row's task does not have, with what to say if they run.  names: slot -> task."""
    missing = {}
    for layer_name, layer in layers.items():
        if not layer.dts.heads:
            continue
        for row, mixture in enumerate(mixtures):
            why = _why_not(layer_name, layer, mixture, names)
            if why:
                missing[layer_name] = f"row {row} {why}"
    return missing


def _why_not(layer_name: str, layer: Layer, mixture: Mixture, names: Mapping[int, str]) -> str:
    """Why a mixture cannot pass through a head, or nothing."""
    heads, weight = layer.dts.heads, layer.dts.get("weight")
    own = heads & set(mixture)
    if layer.dts.in_base and own and own != set(mixture):
        return (
            f"mixes tasks that have a {layer_name!r} of their own, "
            f"{[names[s] for s in sorted(own)]}, with tasks that use the base's"
        )
    if not layer.dts.in_base and (not mixture or own != set(mixture)):
        who = " and ".join(repr(names[s]) for s in mixture if s not in heads) or "the base"
        return (
            f"uses {who}, which has no {layer_name!r} of its own; tasks that have one: "
            f"{[names[s] for s in sorted(heads)]}"
        )
    if not layer.dts.in_base and not any(mixture[slot] for slot in own):
        return (
            f"gives {' and '.join(repr(names[s]) for s in sorted(own))} the weight 0, which leaves nothing of a "
            f"{layer_name!r}, and the base has none"
        )
    tensors = {} if weight is None else weight.values.tensors
    shapes = {tuple(tensors[s].shape) for s in mixture if s in tensors}
    if len(shapes) > 1:
        return (
            f"mixes tasks whose {layer_name!r} has different shapes: {sorted(shapes)}; "
            "dts.unseen.add_task(model, name, class_names) loads such a mixture under a head of its own"
        )
    return ""


def refuse_heads(layers: Mapping[str, Layer], mixture: Mixture, names: Mapping[int, str]) -> None:
    """Raises ValueError where the heads of a mixture's tasks make no one head, which could be written."""
    wrong = [_why_not(name, layer, mixture, names) for name, layer in layers.items() if layer.dts.heads & set(mixture)]
    if any(wrong):
        raise ValueError("this mixture is no one model: it " + next(filter(None, wrong)))


def width(layers: Mapping[str, Layer], slots: list[int], widest: int) -> int:
    """Outputs that a mixture of these slots has of ``widest``: those of its own head or enlarged vocabulary."""
    found = (layer.dts_width(slots, widest) for layer in layers.values())
    return next((own for own in found if own is not None), widest)
