"""Values that modules keep beside parameters: containers of Python and what is in them, copied and compared."""

from __future__ import annotations

import cmath
import copy
from collections import OrderedDict, defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

FIELDS = {*vars(nn.Module()), "dts"}  # of every module: its tensors, children and hooks
NEAR = 1e-5  # of two runs of the same: their largest difference, relative to the largest number
Fields = dict[str, Any]


def is_container(value: Any) -> bool:
    """Python's own, which can be copied and filled; classes made of them may forbid either."""
    return type(value) in (dict, list, set, OrderedDict, defaultdict)


def fields_of(own: Mapping[str, Any]) -> Fields:
    return {name: value for name, value in own.items() if name not in FIELDS}


def copied(own: Mapping[str, Any]) -> Fields:
    """Copies of what a forward may write into beside tensors."""
    return {name: snapshot(value) for name, value in own.items() if is_container(value) and name not in FIELDS}


def snapshot(value: Any, depth: int = 2) -> Any:
    """A copy of a container and of those in it; anything else itself."""
    if not depth or not is_container(value):
        return value
    made: Any = copy.copy(value)
    if isinstance(value, dict):
        made.update({key: snapshot(one, depth - 1) for key, one in value.items()})
    elif isinstance(value, list):
        made[:] = [snapshot(one, depth - 1) for one in value]
    return made


def written(original: Any, now: Any) -> None:
    """Puts into a container what a copy of it has."""
    original.clear()
    original.extend(now) if isinstance(original, list) else original.update(now)


def unchanged(one: Any, other: Any) -> bool:
    """Whether two containers hold the same objects."""
    if one is other:
        return True
    if type(one) is not type(other) or not is_container(one) or len(one) != len(other):
        return False
    if isinstance(one, dict):
        return all(key in other and unchanged(value, other[key]) for key, value in one.items())
    return one == other if isinstance(one, set) else all(map(unchanged, one, other))


def holds_numbers(value: Any, depth: int = 3) -> bool:
    if (is_container(value) or isinstance(value, tuple)) and depth:
        return any(holds_numbers(one, depth - 1) for one in (value.values() if isinstance(value, dict) else value))
    number = isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex())
    return number or isinstance(value, float | complex)


def same(one: Any, other: Any, near: float = NEAR) -> bool:
    """Whether two runs kept the same.  Of what is no number that cannot be told: yes."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        if one.shape != other.shape or one.dtype != other.dtype or one.device != other.device or one.is_meta:
            return False
        one, other = (
            (torch.view_as_real(t.resolve_conj()) if t.is_complex() else t).detach().double().nan_to_num()
            for t in (one, other)
        )
        return not one.numel() or bool((one - other).abs().max() <= near * one.abs().max())
    if (is_container(one) or isinstance(one, tuple)) and type(one) is type(other):
        if isinstance(one, dict) and isinstance(other, dict):
            return one.keys() == other.keys() and all(same(value, other[key], near) for key, value in one.items())
        return isinstance(one, set) or len(one) == len(other) and all(same(a, b, near) for a, b in zip(one, other))
    if isinstance(one, int | float | complex) and isinstance(other, int | float | complex):
        return cmath.isclose(one, other, rel_tol=near)
    return type(one) is type(other)
