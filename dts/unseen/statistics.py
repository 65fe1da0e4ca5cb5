"""What the inputs of a task look like to its base, for a router: of some examples, without labels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from dts.adapter import Adapter
from dts.adapter.route import InputStatistics

from .passes import first_to_run, layer_inputs
from .places import base_of, block_of, modules_named

ENOUGH = 16  # examples below which a router is wrong much more often (benchmarks/quality/MERGING.md)


def summary(x: Tensor, mask: Tensor | None) -> Tensor:
    """The mean over tokens, half of the largest and half of the smallest of each coordinate: float32 [rows, 3 n].

    x: [rows, ..., n];  mask: [rows, ...] of what counts, where it fits.  Half, as extremes vary more.
    """
    x = x.reshape(x.shape[0], -1, x.shape[-1]).float()
    if mask is None or mask.shape[0] != len(x) or mask.numel() != x.shape[0] * x.shape[1]:
        return torch.cat([x.mean(1), x.amax(1) / 2, x.amin(1) / 2], 1)
    used = mask.reshape(len(x), -1, 1).bool()
    used = used | ~used.any(1, keepdim=True)  # a row of padding alone
    largest, smallest = x.masked_fill(~used, -torch.inf).amax(1), x.masked_fill(~used, torch.inf).amin(1)
    mean = x.masked_fill(~used, 0).sum(1) / used.sum(1)
    return torch.cat([mean, largest / 2, smallest / 2], 1)


def first_layer(model: nn.Module, batch: Mapping[str, Tensor]) -> str:
    """Name of the weight of the first block's layer that runs first: its input costs a pass through the embeddings.

    Raises ValueError where no block has a layer with a matrix.
    """
    named = base_of(model).named_modules()
    found = {f"{name}.weight": module for name, module in named if _multiplies(name, module)}
    if not found:
        raise ValueError("the model has no numbered blocks with layers that multiply: name one with layer=")
    return first_to_run(model, found, batch)


def _multiplies(name: str, module: nn.Module) -> bool:
    weight = module._parameters.get("weight")
    matrix = isinstance(module, nn.Linear) or isinstance(weight, Tensor) and weight.ndim == 2
    return block_of(name) == 0 and matrix and not isinstance(module, nn.Embedding)


def input_statistics(
    model: nn.Module, batches: Iterable[Mapping[str, Tensor]], layer: str | None = None
) -> InputStatistics:
    """What a task's inputs look like to its base.

    model: the base, or a ``DTSModel``, whose tasks are off meanwhile;  batches: keyword inputs, 64 rows or more in all;
    layer: name of a layer's weight in the model, by default `first_layer`.  Adapters are told apart by what was made
    of the same layer.  Costs a pass to that layer.
    Raises ValueError for a layer that the model does not have and for too few or unfit inputs.
    """
    rows, module = [], None
    for batch in batches:
        if module is None:
            layer = layer or first_layer(model, batch)
            module = modules_named(base_of(model), [layer]).get(layer)
            if module is None:
                raise ValueError(f"the model has no layer whose weight is called {layer!r}")
        x = layer_inputs(model, {"": module}, batch)[""]
        rows.append(summary(x, batch.get("attention_mask")).cpu())
    if not rows or layer is None:
        raise ValueError("there are no inputs")
    return InputStatistics.of(layer, torch.cat(rows))


def missing_statistics(adapters: Mapping[str, Adapter]) -> list[str]:
    """The tasks of whose inputs their adapters say nothing."""
    return [task for task, adapter in adapters.items() if adapter.inputs is None]
