"""What modules hold beside their parameters and children, as it is at one moment: to compare with, and to go back to.

Fields and buffers, what containers have in them, fields of helper objects that a module keeps things in, and where the
numbers of its parameters lie.  Layers whose weight is codes are left out: what their library keeps beside these, and
packs anew in a first call, is made of the codes alone, and one without the other is another weight.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dts.nn.layers.kept_values import FIELDS, is_container, snapshot, unchanged, written
from dts.sites import is_quantised

DEPTH = 3  # of containers and helper objects within each other
STORES = 1 << 14  # dicts that are looked into at most
FLAG = 64  # numbers of an integer tensor that may say what was made already
SMALL = 1 << 20  # numbers of one that a forward may write into; more are codes
_OTHERS = (nn.Module, Tensor, type, types.ModuleType, types.FunctionType, types.MethodType, functools.partial)
_LIBRARIES = {"torch", "accelerate", "threading", "logging"}  # whose objects keep nothing that a model made


class Place(NamedTuple):
    """A key of a dict in which something is kept; label: how an error calls it."""

    label: str
    store: dict[str, Any]
    key: str

    @property
    def value(self) -> Any:
        """What is there now, in a copy that no call writes into."""
        return frozen(self.store.get(self.key))


class _Store(NamedTuple):
    label: str
    store: dict[str, Any]
    skipped: frozenset[str]
    had: dict[str, Any]
    containers: dict[str, Any]  # copies of those among them

    def now(self) -> dict[str, Any]:
        return {key: value for key, value in self.store.items() if key not in self.skipped}


class ModuleState:
    """Of some modules, with their names.

    numbers: what tensors had is kept, too, so that what was written into them can be found.
    """

    def __init__(self, modules: Iterable[tuple[str, nn.Module]], numbers: bool = False):
        self._stores: list[_Store] = []
        self._seen: set[int] = set()
        self._numbers: dict[int, tuple[Tensor, Tensor]] = {}
        self._data: list[tuple[nn.Parameter, Tensor]] = []
        for name, module in modules:
            if is_quantised(module):
                continue
            parameters = [p for p in module._parameters.values() if type(p) is nn.Parameter]
            self._data += [(p, p.data) for p in parameters if not p.is_meta and p.layout is torch.strided]
            for store in (vars(module), module._buffers):
                self._add(name, store, frozenset(FIELDS) if store is vars(module) else frozenset())
        if numbers:
            for tensor in (t for one in self._stores for value in one.had.values() for t in _tensors(value)):
                if id(tensor) not in self._numbers:
                    self._numbers[id(tensor)] = tensor, tensor.detach().clone()

    def _add(
        self, label: str, store: dict[str, Any], skipped: frozenset[str] = frozenset(), depth: int = DEPTH
    ) -> None:
        if id(store) in self._seen or len(self._stores) >= STORES:
            return
        self._seen.add(id(store))
        had = {key: value for key, value in store.items() if key not in skipped}
        containers = {key: snapshot(value) for key, value in had.items() if is_container(value)}
        self._stores.append(_Store(label, store, skipped, had, containers))
        for key, value in had.items() if depth else ():
            for helper in _helpers(value):
                self._add(f"{label}.{key}".lstrip("."), vars(helper), depth=depth - 1)

    def changed(self) -> list[Place]:
        """Where there is something else, or something else in it."""
        return [
            Place(f"{one.label}.{key}".lstrip("."), one.store, key)
            for one in self._stores
            for key, value in one.now().items()
            if self._is_other(one, key, value)
        ]

    def _is_other(self, one: _Store, key: str, value: Any) -> bool:
        had = one.had.get(key, one)
        if key in one.containers:
            if not unchanged(value, one.containers[key]):
                return True
        elif value is not had:  # a copy is what it was: another thread may be trying something
            return not (id(had) in self._numbers and _is_kept(value) and not _written(value, self._numbers[id(had)][1]))
        return any(_written(*self._numbers[id(t)]) for t in _tensors(value) if id(t) in self._numbers)

    def lend(self) -> None:
        """Puts copies of all that there was where it was, which forwards may write into; then `put_back`."""
        self._lie_as_they_did()
        made: dict[int, Any] = {}
        for one in self._stores:
            _filled(one, {key: self._copy(value, made, one.containers.get(key)) for key, value in one.had.items()})

    def put_back(self, numbers: bool = False) -> None:
        """numbers: also what tensors had."""
        for one in self._stores:
            _filled(one, one.had)
            for key, before in one.containers.items():
                if not unchanged(one.had[key], before):
                    written(one.had[key], before)
        self._lie_as_they_did()
        with torch.no_grad():
            for tensor, before in self._numbers.values() if numbers else ():
                if _written(tensor, before):
                    tensor.data = before.clone() if tensor.shape != before.shape else tensor.data.copy_(before)

    def _lie_as_they_did(self) -> None:
        for parameter, data in self._data:
            if not parameter.data.is_set_to(data):
                parameter.data = data

    def _copy(self, value: Any, made: dict[int, Any], had: Any = None, depth: int = DEPTH) -> Any:
        """had: what a container had in it, None: what it has.  made: what two places share stays shared."""
        if id(value) in made:
            return made[id(value)]
        copy, inner = value, value if had is None else had
        if _is_kept(value) or type(value) is Tensor and value.numel() <= SMALL:
            copy = self._numbers.get(id(value), (value, value))[1].detach().clone()
        elif depth and (is_container(value) or type(value) is tuple):
            copies = {key: self._copy(one, made, None, depth - 1) for key, one in _items(inner)}
            if isinstance(value, dict):
                copy = snapshot(inner, 1)
                copy.update(copies)
            elif not isinstance(value, set):
                copy = type(value)(copies.values())
            else:
                copy = set(inner)
        made[id(value)] = copy
        return copy


def frozen(value: Any, depth: int = DEPTH) -> Any:
    """A copy of tensors, of containers, and of helper objects as dicts."""
    if isinstance(value, Tensor):
        return value.detach().clone() if type(value) in (Tensor, nn.Parameter) else value
    if not depth:
        return value
    if is_helper(value):
        return {key: frozen(one, depth - 1) for key, one in vars(value).items()}
    if isinstance(value, dict) and is_container(value):
        return {key: frozen(one, depth - 1) for key, one in value.items()}
    if type(value) in (list, tuple):
        return [frozen(one, depth - 1) for one in value]
    return value


def is_helper(value: Any) -> bool:
    """An object in which a module may keep something: with fields, and no part of a library that keeps its own."""
    return (
        type(value).__dictoffset__ != 0
        and not isinstance(value, _OTHERS)
        and type(value).__module__.partition(".")[0] not in _LIBRARIES
        and isinstance(getattr(value, "__dict__", None), dict)
    )


def _helpers(value: Any, depth: int = 2) -> Iterator[Any]:
    if is_helper(value):
        yield value
    elif depth and (is_container(value) or type(value) is tuple):
        for _, one in _items(value):
            yield from _helpers(one, depth - 1)


def _tensors(value: Any, depth: int = DEPTH) -> Iterator[Tensor]:
    """What may be of numbers, or a flag."""
    if _is_kept(value):
        yield value
    elif depth and (is_container(value) or type(value) is tuple):
        for _, one in _items(value):
            yield from _tensors(one, depth - 1)


def _is_kept(value: Any) -> bool:
    return (
        type(value) is Tensor
        and not value.is_meta
        and value.layout is torch.strided
        and (value.is_floating_point() or value.is_complex() or value.numel() <= FLAG)
    )


def _items(value: Any) -> Iterable[tuple[Any, Any]]:
    return list(value.items() if isinstance(value, dict) else enumerate(value))


def _filled(one: _Store, values: dict[str, Any]) -> None:
    for key in one.now().keys() - values.keys():
        del one.store[key]
    one.store.update(values)


def _written(tensor: Tensor, before: Tensor) -> bool:
    """Whether a tensor has other bits than it had."""
    if tensor.shape != before.shape or tensor.dtype != before.dtype or tensor.device != before.device:
        return True
    now, before = (
        torch.view_as_real(t.detach().resolve_conj()) if t.is_complex() else t.detach() for t in (tensor, before)
    )
    return not torch.equal(now.nan_to_num(), before.nan_to_num())
