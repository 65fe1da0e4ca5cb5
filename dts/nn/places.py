"""Whether what tasks change is still what the model computes with.

A layer that was replaced, and an alias of a raw parameter, would go on as the base without a word.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from operator import is_

from torch import Tensor, nn

from dts.nn.layers import Layer
from dts.sites import raw_or_none


class Places:
    """Where the layers were when they were looked for: each module on the way to one, in the dict that holds it."""

    def __init__(self, model: nn.Module, names: Iterable[str] = ()):
        steps = {}
        for name in names:
            module = model
            for part in name.split(".") if name else ():
                child = module._modules.get(part)
                if child is None:
                    break
                steps[id(module._modules), part] = module._modules, part, child
                module = child
        self._holders, self._keys, self._children = (
            (list(column) for column in zip(*steps.values())) if steps else ([], [], [])
        )

    def hold(self) -> bool:
        """Whether every module is where it was; a few microseconds, for every call."""
        return all(map(is_, map(dict.get, self._holders, self._keys), self._children))


def replaced_layers(model: nn.Module, layers: dict[str, Layer]) -> list[str]:
    """Names of the layers that the model no longer has; one that was only wrapped, or moved, it still has."""
    gone = []
    for name, layer in layers.items():
        module = model
        for part in name.split(".") if name else ():
            if part not in module._modules:
                break
            module = module._modules[part]
        if module is not layer and not any(inner is layer for inner in module.modules()):
            gone.append(name)
    return gone


def aliases(model: nn.Module, changed: dict[int, str]) -> list[str]:
    """ "module.attribute is parameter" for attributes, lists and dicts that hold a parameter itself, past its module.

    changed: id of a tensor -> its name.  What lies in a module's own list is that module's business: `forward_with`.
    """
    found = []
    for name, module in model.named_modules():
        for attribute, value in vars(module).items():
            if attribute in ("_parameters", "_buffers", "_modules", "dts"):
                continue
            own = (
                {id(raw_or_none(module, p)) for p in (*module._parameters, *module._buffers)}
                if type(value) is list
                else ()
            )
            for tensor in _held(value):
                if id(tensor) in changed and id(tensor) not in own:
                    found.append(f"{name + '.' if name else ''}{attribute} holds {changed[id(tensor)]}")
    return found


def _held(value, depth: int = 3) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif depth and isinstance(value, (list, tuple, dict, set)):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _held(inner, depth - 1)
