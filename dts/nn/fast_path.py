"""torch's encoder has a fast path that reads its children's weights, past their forward: off while there are tasks."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn


def no_fast_path(modules: Iterable[tuple[str, nn.Module]]) -> None:
    """modules: with their names, as `walked` gives them."""
    for _, module in modules:
        if isinstance(module, nn.TransformerEncoderLayer):
            module.activation_relu_or_gelu = 0
        elif isinstance(module, nn.TransformerEncoder):
            module.use_nested_tensor = False


def fast_path_again(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoderLayer):
            activation = module.activation
            relu = activation is nn.functional.relu or isinstance(activation, nn.ReLU)
            gelu = activation is nn.functional.gelu or isinstance(activation, nn.GELU)
            module.activation_relu_or_gelu = 1 if relu else 2 if gelu else 0
        elif isinstance(module, nn.TransformerEncoder):
            module.use_nested_tensor = module.enable_nested_tensor
