"""Where the rows of the batch are, as two runs show it: of one row, and of two."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dts.nn.layers import REPEATED, SHARED, Layer, Owner
from dts.nn.rows.seen import SAME, Record, Seen, begins_with

NO_AXIS = -1  # a tensor that does not grow with the batch
COUPLED = -3  # an output that grows in several axes: rows of the batch meet each other
ORDER = "the rows of its input are not in the batch's order"


@dataclass
class RowAxes:
    """What the probe found.

    axis: a layer's batch axis;  axes: those of an `Owner`'s arguments and outputs;  out_axes: of the model's outputs.
    unroutable: layer name -> why rows of several tasks cannot pass through it at once.
    whole: places and names of arguments as long as the batch that are not of its rows.
    """

    axis: dict[str, int] = field(default_factory=dict)
    axes: dict[str, tuple[list[int], list[int]]] = field(default_factory=dict)
    out_axes: list[int] = field(default_factory=list)
    unroutable: dict[str, str] = field(default_factory=dict)
    whole: frozenset[int | str] = frozenset()

    @property
    def coupled(self) -> bool:
        return COUPLED in self.out_axes

    def shares(self, layer: str) -> bool:
        """Whether a layer has something of size 1 for all rows, which is repeated for each."""
        return self.axis.get(layer) == SHARED or REPEATED in self.axes.get(layer, ((), ()))[1]

    @property
    def fields(self) -> dict[str, Any]:
        """What a call must know of it: fields of `Current`."""
        return {"axis": self.axis, "axes": self.axes}


def rows_of_answer(one: Seen, two: Seen) -> int:
    """The axis of the rows in an output, or COUPLED also where a row's answer is another one in company."""
    axis = axis_of(one, two)
    return COUPLED if axis >= 0 and not begins_with(two, one, axis) else axis


def axis_of(one: Seen, two: Seen) -> int:
    """The axis that holds the rows, NO_AXIS, or COUPLED if several grew or rows are interleaved."""
    if one.shape == two.shape:
        return NO_AXIS
    if len(one.shape) != len(two.shape):
        return COUPLED
    grown = [axis for axis, (a, b) in enumerate(zip(one.shape, two.shape)) if a != b]
    axis = grown[0]
    if len(grown) > 1 or two.shape[axis] != 2 * one.shape[axis]:
        return COUPLED
    if one.shape[axis] > 1 and axis < len(one.digests):
        (a, size), (b, _) = one.digests[axis], two.digests[axis]
        if bool(((a - b[: len(a)]).abs() > SAME * size.max()).any()):
            return COUPLED
    if one.shape[axis] == 1 and axis < len(one.digests):
        (a, size), (b, _) = one.digests[axis], two.digests[axis]
        near = SAME * size.max()
        if bool((a[0] - b[1]).abs().max() <= near) and bool((a[0] - b[0]).abs().max() > 2 * near):
            return COUPLED  # the last one first
    return axis


def compare(layers: dict[str, Layer], one: Record, two: Record, alone: Mapping[str, str]) -> RowAxes:
    where = RowAxes()
    for name, layer in layers.items():
        calls_one, calls_two = one[name], two[name]
        if not calls_one and not calls_two:
            continue
        if len(calls_one) != len(calls_two) or any(
            len(a[0]) != len(b[0]) or len(a[1]) != len(b[1]) for a, b in zip(calls_one, calls_two)
        ):
            where.unroutable[name] = "it is called another number of times for two rows than for one"
            continue
        found = {
            tuple(tuple(axis_of(a, b) for a, b in zip(side_a, side_b)) for side_a, side_b in zip(call_a, call_b))
            for call_a, call_b in zip(calls_one, calls_two)
        }
        if len(found) > 1:
            where.unroutable[name] = "it is called with the batch in different places"
            continue
        (inputs, outputs), first = found.pop(), calls_one[0][0]
        if isinstance(layer, Owner) and name in alone:
            where.unroutable[name] = alone[name]
            continue
        if isinstance(layer, Owner):
            outputs = tuple(_repeatable(axis, seen) for axis, seen in zip(outputs, calls_one[0][1]))
            where.axes[name] = list(inputs), list(outputs)
            if COUPLED in inputs or COUPLED in outputs or not any(axis >= 0 for axis in inputs):
                where.unroutable[name] = "its arguments have no batch axis"
            elif NO_AXIS in outputs:
                where.unroutable[name] = "it has an output without a batch axis"
        elif not inputs or inputs[0] == COUPLED:
            where.unroutable[name] = ORDER
        elif inputs[0] == NO_AXIS and not (first[0].shape and first[0].shape[0] == 1):
            where.unroutable[name] = f"its input {list(first[0].shape)} has no batch axis"
        else:
            where.axis[name] = SHARED if inputs[0] == NO_AXIS else inputs[0]
        if isinstance(layer, Owner) and name not in where.unroutable:
            where.axis[name] = 0
    return where


def _repeatable(axis: int, seen: Seen) -> int:
    """REPEATED for an output [1, ..., ...] of all rows, as tables of positions give it, else the axis."""
    return REPEATED if axis == NO_AXIS and len(seen.shape) > 1 and seen.shape[0] == 1 else axis
