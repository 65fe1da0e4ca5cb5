"""Other inputs than the given ones, which show what these alone do not."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves

from dts.nn.layers.kept import PLAIN
from dts.nn.rows.seen import Inputs


def turned_round(inputs: Inputs) -> Inputs | None:
    """The same two rows, the second one first; None where there is more than tensors, which has rows of its own."""
    args, kwargs = inputs
    if not all(isinstance(leaf, PLAIN) for leaf in (*args, *kwargs.values())):
        return None
    turn = lambda value: value.flip(0) if isinstance(value, Tensor) and value.dim() and len(value) == 2 else value  # noqa: E731
    return [turn(value) for value in args], {name: turn(value) for name, value in kwargs.items()}


def with_other_values(inputs: Inputs, pad: int) -> Inputs | None:
    """The same row from back to front, with a token less: by a mask, or by the id of padding; None: as in
    `turned_round`."""
    args, kwargs = inputs
    if not all(isinstance(leaf, PLAIN) for leaf in tree_leaves(inputs)):
        return None

    def other(value: Any) -> Any:
        if not isinstance(value, Tensor) or value.dim() < 2 or value.shape[1] < 2:
            return value
        if value.dim() == 2 and bool(((value == 0) | (value == 1)).all()):
            some = value.clone()
            some[:, some[0].nonzero()[-1:]] = 0
            return some
        turned = value.flip(1)
        if value.dim() == 2 and not value.is_floating_point() and not value.is_complex():
            turned[:, -1] = pad
        return turned

    return [other(value) for value in args], {
        name: value if "label" in name else other(value) for name, value in kwargs.items()
    }
