"""Every place in a model where a parameter or buffer is, and the tensor there as it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from dts.sites.distributed import whole
from dts.sites.quantised import dequantised, is_quantised, quantised_shape, stored


def raw(module: nn.Module, name: str) -> Tensor:
    """A parameter or buffer as it is, whatever tasks change of it; the codes of a quantised layer are its ``weight``.

    For one that may be None: `raw_or_none`.
    """
    own = module.__dict__
    for store in ("_parameters", "_buffers"):
        if name in own[store]:
            return own[store][name]
    codes = stored(module) if name == "weight" else None
    return getattr(module, name) if codes is None else codes


raw_or_none: Callable[[nn.Module, str], Tensor | None] = raw  # the same, for a bias that a layer may not have


def parameter_shape(module: nn.Module, name: str) -> tuple[int, ...]:
    """Shape of a parameter or buffer; that of the matrix it stands for if a layer's weight is quantised."""
    return quantised_shape(module) if is_quantised(module, name) else tuple(raw(module, name).shape)


@dataclass
class Site:
    """One parameter or buffer of one module."""

    module: nn.Module
    parameter: str
    name: str  # full name in the model

    @property
    def tensor(self) -> Tensor:
        return raw(self.module, self.parameter)

    @property
    def shape(self) -> tuple[int, ...]:
        return parameter_shape(self.module, self.parameter)

    @property
    def numbers(self) -> Tensor:
        """The tensor, put together if it lies on several processes; of a quantised layer the matrix that its codes
        stand for, made anew each time."""
        return dequantised(self.module) if is_quantised(self.module, self.parameter) else whole(self.tensor)


def walked(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """``named_modules()`` in its order, in a fifth of its time: a generator for each level passes every module on."""
    found, seen, waiting = list[tuple[str, nn.Module]](), set[int](), [("", model)]
    while waiting:
        name, module = waiting.pop()
        if id(module) in seen:
            continue
        seen.add(id(module))
        found.append((name, module))
        if module._modules:
            prefix = f"{name}." if name else ""
            inner = [(prefix + key, child) for key, child in module._modules.items() if child is not None]
            waiting += reversed(inner)
    return found


def sites(model: nn.Module) -> dict[str, Site]:
    """Every name of every parameter and buffer; one that is shared has several names.

    A quantised layer has a ``weight`` in the place of its codes, whatever they are called.
    """
    found = {}
    for prefix, module in model.named_modules(remove_duplicate=False):
        own = [*module._parameters, *module._buffers]
        if own and "weight" not in own and is_quantised(module):
            codes = raw(module, "weight")
            own = ["weight", *(parameter for parameter in own if raw(module, parameter) is not codes)]
        for parameter in own:
            if raw_or_none(module, parameter) is not None:
                name = f"{prefix}.{parameter}" if prefix else parameter
                found[name] = Site(module, parameter, name)
    return found
