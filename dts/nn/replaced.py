"""Whether what tasks change is still what the model computes with.

A layer that was replaced, and an alias of a raw parameter, would go on as the base without a word.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from operator import contains, is_

from torch import Tensor, nn

from dts.checkpoint.errors import first
from dts.nn.fit import Change
from dts.nn.layers import Layer
from dts.nn.layers.kept_values import FIELDS
from dts.nn.loaded import LoadedTasks
from dts.nn.routing import Mixture
from dts.sites import is_quantised, raw_or_none

HOLDS = (Tensor, list, tuple, dict, set)  # attributes that are looked into


class Places:
    """Where the layers were when they were looked for: each module on the way to one, in the dict that holds it."""

    def __init__(self, model: nn.Module, names: Iterable[str] = ()):
        steps: dict[tuple[int, str], tuple[dict[str, nn.Module | None], str, nn.Module]] = {}
        for name in names:
            module = model
            for part in name.split(".") if name else ():
                child = module._modules.get(part)
                if child is None:
                    break
                steps[id(module._modules), part] = module._modules, part, child
                module = child
        found = {id(module): module for _, _, module in steps.values() if isinstance(module, Layer)}
        named = [(store, key) for one in found.values() for store in (one._parameters, one._buffers) for key in store]
        self._stores, self._names = [store for store, _ in named], [key for _, key in named]
        own = [(one._parameters, key) for one in found.values() for key in one.dts.parameters if key in one._parameters]
        self._own, self._own_names = [store for store, _ in own], [key for _, key in own]
        self._holders = [holder for holder, _, _ in steps.values()]
        self._keys = [key for _, key, _ in steps.values()]
        self._children = [child for _, _, child in steps.values()]

    def hold(self) -> bool:
        """Whether every module is where it was, and has its parameters; some microseconds, for every call."""
        return all(map(is_, map(dict.get, self._holders, self._keys), self._children)) and all(
            map(contains, self._stores, self._names)
        )

    def given(self) -> bool:
        """Whether tensors that are no parameters are in the places of some that tasks change, as
        `torch.func.functional_call` of the whole model puts them there."""
        return Tensor in set(map(type, map(dict.get, self._own, self._own_names)))


def replaced_layers(model: nn.Module, layers: dict[str, Layer]) -> list[str]:
    """Names of the layers that the model no longer has; one that was only wrapped, or moved, it still has."""
    gone = []
    for name, layer in layers.items():
        module = model
        for part in name.split(".") if name else ():
            child = module._modules.get(part)
            if child is None:
                break
            module = child
        if module is not layer and not any(inner is layer for inner in module.modules()):
            gone.append(name)
    return gone


def refuse_replaced(model: nn.Module, layers: dict[str, Layer], tasks: LoadedTasks, mixtures: list[Mixture]) -> bool:
    """A module that took the place of a layer knows nothing of tasks.  Mixtures without changes there may go on.

    Raises RuntimeError for others, and where a parameter that tasks change is none any more; returns whether some layer
    was replaced: if none, one was wrapped, perhaps.
    """
    used = {slot for mixture in mixtures for slot in mixture}
    apart = {
        f"{name}.{parameter}": delta.slots
        for name, layer in layers.items()
        for parameter, delta in layer.dts.parameters.items()
        if delta.slots
        and parameter not in {**layer._parameters, **layer._buffers}
        and not is_quantised(layer, parameter)
    }
    if apart:  # not the base either: its class knows nothing of what takes the parameter's place
        lost = [name for name, loaded in tasks.items() if any(loaded.slot in slots for slots in apart.values())]
        raise RuntimeError(
            f"{first(apart, 8)} was made a function of other tensors, as weight norm and pruning do, after tasks were "
            f"loaded that change it, {lost}: take that off again, or delete_task() them"
        )
    gone = replaced_layers(model, layers)
    names = [name for name in gone if layers[name].dts.slots & used]
    if names:
        slots = used & set().union(*(layers[name].dts.slots for name in names))
        lost = [name for name, loaded in tasks.items() if loaded.slot in slots]
        raise RuntimeError(
            f"{first(names, 8)} was replaced after tasks were loaded that change it, {lost}: what they "
            f"change there is lost; delete_task() and load_task() them again"
        )
    return bool(gone)


def refuse_aliases(modules: Iterable[tuple[str, nn.Module]], changes: list[Change]) -> None:
    """Raises ValueError where one of these modules keeps a parameter that a task changes past its module."""
    found = aliases(modules, {id(change.site.tensor): change.site.name for change in changes})
    if found:
        raise ValueError(
            f"the model keeps parameters where no task can change them, {first(found, 8)}: let it keep "
            f"the module, or read the parameter in its forward"
        )


def aliases(modules: Iterable[tuple[str, nn.Module]], changed: dict[int, str]) -> list[str]:
    """ "module.attribute is parameter" for attributes, lists and dicts that hold a parameter itself, past its module.

    changed: id of a tensor -> its name.  What lies in a module's own list is that module's business: `forward_with`.
    """
    found: list[str] = []
    for name, module in modules:
        own_fields, here = vars(module), list[str]()
        for attribute in own_fields.keys() - FIELDS:
            value = own_fields.get(attribute)  # another thread may make a layer of it meanwhile
            if not isinstance(value, HOLDS):
                continue
            own = (
                {id(raw_or_none(module, p)) for p in (*module._parameters, *module._buffers)}
                if type(value) is list
                else ()
            )
            for tensor in _held(value):
                if id(tensor) in changed and id(tensor) not in own:
                    here.append(f"{name + '.' if name else ''}{attribute} holds {changed[id(tensor)]}")
        found += sorted(here)
    return found


def _held(value: object, depth: int = 3) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif depth and isinstance(value, HOLDS):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _held(inner, depth - 1)
