"""Write one mixture into the weights, so that the layers can be plain again."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dts.nn.deltas import ParameterDelta
from dts.nn.layer import Layer, parameter_shape
from dts.nn.routing import RoutingState


def merge(layers: dict[str, Layer], state: RoutingState) -> None:
    """base + the deltas of the state's one mixture, in place; parameters that modules share stay shared."""
    quantised = [f"{name}.{p}" for name, layer in layers.items() for p in layer.dts.parameters
                 if tuple(getattr(layer, p).shape) != parameter_shape(layer, p)]  # fmt: skip
    if quantised:
        raise ValueError(f"cannot write into quantised weights: {', '.join(quantised)}")
    done: dict[int, tuple[Tensor, nn.Parameter]] = {}  # id -> (the shared tensor, its new value)
    for layer in layers.values():
        for name, delta in layer.dts.parameters.items():
            tensor = getattr(layer, name)
            if id(tensor) not in done:
                done[id(tensor)] = tensor, merged(delta, tensor, state)
            _put(layer, name, tensor, done[id(tensor)][1])
        _resize(layer)


def merged(delta: ParameterDelta, tensor: Tensor, state: RoutingState) -> Tensor:
    """One parameter's dense value, with the rows of an enlarged vocabulary."""
    routing = state.on(tensor.device)
    value = delta.dense(tensor, routing)
    if delta.added.tensors:
        length = int(delta.added.lengths(routing)[0])
        value = torch.cat([value, delta.added.rows(routing, value.dtype)[0, :length]])
    return value.contiguous()


def _put(layer: Layer, name: str, tensor: Tensor, value: Tensor) -> None:
    if name in layer._parameters:
        tensor.data = value
    else:
        layer._buffers[name] = value


def _resize(layer: Layer) -> None:
    """A layer's own idea of its sizes."""
    if isinstance(layer, nn.Linear):
        layer.out_features, layer.in_features = layer.weight.shape
    elif isinstance(layer, nn.Embedding):
        layer.num_embeddings = layer.weight.shape[0]


def take_sizes(model: nn.Module, fine_tune: dict) -> None:
    """Bring a transformers model's config up to what was merged: the fine-tune's classes and vocabulary.

    fine_tune: the content of its ``config.json``.  Without this the model could not be loaded again once saved.
    """
    config = getattr(model, "config", None)
    if config is None:
        return
    if "id2label" in fine_tune and hasattr(config, "id2label"):
        config.id2label = {int(number): label for number, label in fine_tune["id2label"].items()}
        config.label2id = {label: number for number, label in config.id2label.items()}
        for module in model.modules():  # what the loss of a classifier asks
            if isinstance(getattr(module, "num_labels", None), int):
                module.num_labels = len(config.id2label)
    if "vocab_size" in fine_tune and hasattr(config, "vocab_size"):
        config.vocab_size = fine_tune["vocab_size"]
