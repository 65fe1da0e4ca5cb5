"""What models and modules return: tensors within containers, and within data classes that PyTorch does not open."""

from __future__ import annotations

import copy
from dataclasses import fields, is_dataclass
from typing import Any

from torch.utils._pytree import tree_is_leaf


def opened(result: Any) -> Any:
    """The fields of a data class by their names; anything else itself."""
    if is_dataclass(result) and not isinstance(result, type) and tree_is_leaf(result):
        return {field.name: getattr(result, field.name) for field in fields(result)}
    return result


def closed(like: Any, content: Any) -> Any:
    """An object like this one, with what was made of its `opened` fields."""
    if opened(like) is like:
        return content
    made = copy.copy(like)
    for name, value in content.items():
        object.__setattr__(made, name, value)  # of frozen ones, too
    return made
