"""Where the rows of the batch are in each layer's input: found by running the base on one row and on two.

A layer sees a tensor, not the batch: [batch, ...], [sequence, batch, ...], tokens flattened batch-major, position ids
[1, ...] that all rows share, or relative positions [query, key] that only look like a batch.  What grows when a row is
added is the batch axis; values show whether flattened rows stay together.  Nothing is assumed of an architecture.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from dts.nn.layers import REPEATED, SHARED, UNROUTABLE, Layer, Owner
from dts.nn.layers.kept import PLAIN, alone, as_they_were
from dts.nn.layers.layer_deltas import RowsApart
from dts.nn.routing import RoutingState
from dts.nn.trees import opened
from dts.sites import local

NO_AXIS = -1  # a tensor that does not grow with the batch
COUPLED = -3  # an output that grows in several axes: rows of the batch meet each other
NUMBERS = 8  # of a digest: of one number rows of others are as near to each other as SAME one time in twenty
ORDER = "the rows of its input are not in the batch's order"
SAME = 0.05  # two runs of one row differ by less, relative to its size; half precision leaves about 0.01
VALUES = "how many inputs it has depends on the values of a row"
BYPASSED = "another module reads its parameters, for all rows at once"
MORE = 8  # rows of a batch that are looked at
MISSED: Any = object()  # a hook that is taken away while another thread calls gets no keywords
_NUMBER = re.compile(r"\d+")


Inputs = tuple[Sequence[Any], Mapping[str, Any]]  # args and kwargs of a call


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


def find_rows(
    model: nn.Module,
    layers: dict[str, Layer],
    state: RoutingState,
    run: Callable[..., Any],
    one: Inputs,
    two: Inputs,
    more: Inputs | None = None,
    rows: int = 2,
) -> RowAxes:
    """Run ``run(*args, **kwargs)`` on one row, on two and on more, all of the base, and compare.

    one, two, more: (args, kwargs) of one row, of two, and of ``rows``, of which these are the first; None: there are no
    more than two.
    """
    # a compiled model runs as it is: no program is made for so few rows, nor for the hooks that look at them
    eager = torch.compiler.set_stance("force_eager") if state.compiled or _compiled(model) else nullcontext()
    with eager, _evaluating(model), state.using([{}], probing=True), as_they_were(model.modules()) as anew:
        run = _from_the_start(run, anew)
        by_itself: dict[str, str] = {}
        first, record_one = _record(layers, run, one, {})
        second, record_two = _record(layers, run, two, by_itself)
        where = _compare(layers, record_one, record_two, by_itself)
        where.out_axes = [_rows_of_answer(a, b) for a, b in zip(_seen(first), _seen(second))]
        if (turned := _turned(two)) is not None:
            _, record_turned = _record(layers, run, turned, {})
            for name, calls in record_two.items():
                if (axis := where.axis.get(name, NO_AXIS)) >= 0 and _sorted(calls, record_turned[name], axis):
                    where.unroutable[name] = ORDER
        if more is not None:
            _look_at_more(layers, run, more, rows, where, (record_one, record_two), _seen(second))
        pad = getattr(getattr(model, "config", None), "pad_token_id", None)
        _look_at_other_values(
            layers, run, _with_other_values(one, pad if isinstance(pad, int) else 0), where, record_one
        )
        where.axis |= dict.fromkeys(where.unroutable, UNROUTABLE)
        if where.coupled:
            return where
        bypassed: set[str] = set()
        try:
            with state.using([{}, {}], bypassed=bypassed, **where.fields):
                failure = _differs(run, two, second)
            if failure:
                _give_up(layers, where, failure)
        except RowsApart as error:
            where.unroutable[error.layer] = error.why
        for name in bypassed:
            where.unroutable[name] = BYPASSED
    return where


def _from_the_start(run: Callable[..., Any], anew: Callable[[], None]) -> Callable[..., Any]:
    """A run that finds modules, random numbers and its arguments as each other one does."""

    def run_once(*args: Any, **kwargs: Any) -> Any:
        anew()
        with alone((args, kwargs)) as (own_args, own_kwargs):
            return run(*own_args, **own_kwargs)

    return run_once


def _look_at_more(
    layers: dict[str, Layer],
    run: Callable[..., Any],
    more: Inputs,
    rows: int,
    where: RowAxes,
    records: tuple[Record, Record],
    answer: list[Seen],
) -> None:
    """Finds what two rows do not show: an order of the rows that begins as the batch's, as of every second one, and
    inputs of which each row has as many as its values say."""
    found, record = _record(layers, run, more, {})
    for i, (before, now) in enumerate(zip(answer, _seen(found))):
        if where.out_axes[i] >= 0 and not _begins_with(now, before, where.out_axes[i]):
            where.out_axes[i] = COUPLED
    wrong = {name for name, layer in layers.items() if not _grows(layer, records[0][name], record[name], rows)}
    _by_values(layers, where, wrong)
    for name, calls in records[1].items():
        axis = where.axis.get(name, NO_AXIS)
        if axis < 0 or name in where.unroutable:
            continue
        for (one, _), (two, _), (all_rows, _) in zip(records[0][name], calls, record[name]):
            stays = all(_begins_with(b, a, axis) for a, b in zip(one[:1], two[:1]))
            if stays and not all(_begins_with(b, a, axis) for a, b in zip(two[:1], all_rows[:1])):
                where.unroutable[name] = ORDER


def _look_at_other_values(
    layers: dict[str, Layer], run: Callable[..., Any], other: Inputs | None, where: RowAxes, record_one: Record
) -> None:
    """Finds layers of which one row's values say how many inputs they have: tokens that are no padding, or that a
    router sends to an expert.  The first batch's rows may have the same number of them by chance."""
    if other is None:
        return
    try:
        _, record = _record(layers, run, other, {})
    except Exception:  # values that are none here
        return
    wrong = {name for name, layer in layers.items() if not _grows(layer, record_one[name], record[name], 1)}
    _by_values(layers, where, wrong)


def _by_values(layers: Iterable[str], where: RowAxes, wrong: set[str]) -> None:
    """Those, and their like in other blocks and of other experts."""
    like = {_NUMBER.sub("*", name) for name in wrong}
    where.unroutable |= {name: VALUES for name in layers if _NUMBER.sub("*", name) in like}


def _with_other_values(inputs: Inputs, pad: int) -> Inputs | None:
    """The same row from back to front, with a token less: by a mask, or by the id of padding; None: see `_turned`."""
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


def _grows(layer: Layer, one: Calls, now: Calls, rows: int) -> bool:
    """Whether a layer's inputs are of one row's sizes, or have one axis so many times as long."""
    if len(one) != len(now):
        return False
    for (before, _), (after, _) in zip(one, now):
        if not isinstance(layer, Owner):
            before, after = before[:1], after[:1]
        if len(before) != len(after):
            return False
        for a, b in zip(before, after):
            if len(a.shape) != len(b.shape):
                return False
            other = [(x, y) for x, y in zip(a.shape, b.shape) if x != y]
            if len(other) > 1 or any(y != rows * x for x, y in other):
                return False
    return True


def _begins_with(more: Seen, few: Seen, axis: int) -> bool:
    """Whether the first rows of one are those of the other; where that cannot be told, yes."""
    if axis >= len(few.digests) or more.shape[axis] < few.shape[axis]:
        return True
    (a, size), (b, _) = few.digests[axis], more.digests[axis]
    return a.shape[1:] == b.shape[1:] and not bool(((a - b[: len(a)]).abs() > few.near * size.max()).any())


def _rows_of_answer(one: Seen, two: Seen) -> int:
    """The axis of the rows in an output, or COUPLED also where a row's answer is another one in company."""
    axis = _axis(one, two)
    return COUPLED if axis >= 0 and not _begins_with(two, one, axis) else axis


def shared(
    model: nn.Module, state: RoutingState, run: Callable[..., Any], every: Inputs, taken: Inputs, kept: Inputs
) -> bool:
    """Whether the first row's answer is that of the ``kept`` arguments, and not of the ``taken`` ones.

    every, taken, kept: (args, kwargs) of all rows; of one row, with one element of each vector; and with all of them.
    """
    if not all(isinstance(leaf, PLAIN) for leaf in tree_leaves(every)):
        return False  # an object, which all these calls would write into
    eager = torch.compiler.set_stance("force_eager") if state.compiled or _compiled(model) else nullcontext()
    with eager, _evaluating(model), state.using([{}], probing=True), as_they_were(model.modules()) as anew:
        run = _from_the_start(run, anew)
        expected = [tensor[:1] for tensor in _tensors(run(*every[0], **every[1])) if tensor.dim()]
        return not _answers(run, taken, expected) and _answers(run, kept, expected)


def _answers(run: Callable[..., Any], inputs: Inputs, expected: Sequence[Tensor]) -> bool:
    """Whether a call gives these tensors."""
    try:
        found = [tensor for tensor in _tensors(run(*inputs[0], **inputs[1])) if tensor.dim()]
    except (RuntimeError, ValueError, IndexError):
        return False
    return len(found) == len(expected) and all(
        a.shape == b.shape and bool((a.float() - b.float()).nan_to_num().abs().max() <= SAME * b.float().abs().max())
        for a, b in zip(found, expected)
        if a.numel()
    )


def _compiled(model: nn.Module) -> bool:
    """Whether `torch.compile` wraps it or a part of it, or ``compile()`` was called on one."""
    return any(getattr(m, "_compiled_call_impl", None) is not None or hasattr(m, "_orig_mod") for m in model.modules())


def _differs(run: Callable[..., Any], inputs: Inputs, expected: object) -> str:
    """Why a run with one row of the routing for each row gives something else than without, or nothing.

    Raises RowsApart where one layer says so."""
    try:
        found = run(*inputs[0], **inputs[1])
    except RowsApart:
        raise
    except (RuntimeError, ValueError, IndexError) as error:
        return str(error).splitlines()[0]
    for a, b in zip(_tensors(found), _tensors(expected)):
        if a.shape != b.shape:
            return f"an output became {list(a.shape)} instead of {list(b.shape)}"
        scale = b.float().nan_to_num(0, 0, 0).abs().max() if b.numel() else 0
        if (a.float() - b.float()).nan_to_num(0, 0, 0).abs().max() > SAME * scale:
            return "an output changed"
    return ""


def _give_up(layers: dict[str, Layer], where: RowAxes, failure: str) -> None:
    """Something cannot be repeated a row: shared inputs are the first suspects, then everything."""
    suspects = [name for name in where.axis if where.shares(name)] or list(layers)
    for name in suspects:
        where.axis[name] = UNROUTABLE
        where.unroutable[name] = f"its output is shared by all rows and cannot be repeated for each: {failure}"


def _turned(inputs: Inputs) -> Inputs | None:
    """The same two rows, the second one first; None where there is more than tensors, which has rows of its own."""
    args, kwargs = inputs
    if not all(isinstance(leaf, PLAIN) for leaf in (*args, *kwargs.values())):
        return None
    turn = lambda value: value.flip(0) if isinstance(value, Tensor) and value.dim() and len(value) == 2 else value  # noqa: E731
    return [turn(value) for value in args], {name: turn(value) for name, value in kwargs.items()}


def _sorted(calls: Sequence[Any], turned: Sequence[Any], axis: int) -> bool:
    """Whether two rows reach a layer in one order, whichever the batch has them in: by a length of theirs, perhaps."""
    for (before, _), (after, _) in zip(calls, turned):
        for one, two in zip(before[:1], after[:1]):
            if one.shape != two.shape or axis >= len(one.digests) or one.shape[axis] != 2:
                continue
            (a, size), (b, _) = one.digests[axis], two.digests[axis]
            near = SAME * size.max()
            if bool((a[0] - a[1]).abs().max() > 2 * near) and bool((a - b).abs().max() <= near):
                return True
    return False


@dataclass
class Seen:
    """One tensor of one call: its shape and, for each row of each axis that may be the batch, a digest (`NUMBERS` of
    them) and a size."""

    shape: torch.Size
    digests: list[tuple[Tensor, Tensor]]
    near: float  # by how much two runs of one row may differ

    @classmethod
    def of(cls, tensor: Tensor) -> Seen:
        digests = []
        for axis in range(min(tensor.dim(), 2)):
            flat = tensor.detach().float().nan_to_num(0, 0, 0).movedim(axis, 0)
            flat = flat.flatten(1) if flat.dim() > 1 else flat[:, None]
            places = torch.arange(flat.shape[1], device=flat.device, dtype=torch.float32)
            mixer = torch.cos(places[:, None] * torch.arange(1, NUMBERS + 1, device=flat.device))
            digests.append((flat @ mixer, flat.norm(dim=1)))
        return cls(tensor.shape, digests, SAME if tensor.dtype.itemsize == 2 else SAME / 5)


Calls = list[tuple[list[Seen], list[Seen]]]  # (tensors in, tensors out) of each call of a layer
Record = dict[str, Calls]  # by the layer's name


def _axis(one: Seen, two: Seen) -> int:
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


def _compare(layers: dict[str, Layer], one: Record, two: Record, alone: Mapping[str, str]) -> RowAxes:
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
            tuple(tuple(_axis(a, b) for a, b in zip(side_a, side_b)) for side_a, side_b in zip(call_a, call_b))
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


def _record(
    layers: dict[str, Layer], run: Callable[..., Any], inputs: Inputs, alone: dict[str, str]
) -> tuple[object, Record]:
    """The output and what the layers saw.  alone: gets those that are given what the rows have one of, and why."""
    record: Record = {name: [] for name in layers}
    thread = threading.get_ident()  # calls of others go through the hooks, too
    before: dict[str, tuple[list[Tensor], dict[str, Tensor]]] = {}
    handles = []
    for name, layer in layers.items():

        def enters(module: nn.Module, args: Any, kwargs: Any = MISSED, name: str = name) -> None:
            if threading.get_ident() != thread or kwargs is MISSED:
                return
            before[name] = [tensor.clone() for tensor in _tensors((args, kwargs))], _kept(module)

        def leaves(module: nn.Module, args: Any, kwargs: Any, output: Any = MISSED, name: str = name) -> None:
            if threading.get_ident() != thread or output is MISSED:
                return
            if not all(isinstance(leaf, PLAIN) for leaf in tree_leaves((args, kwargs))):
                alone[name] = "it is given an object, a cache perhaps, of which each task would need its own"
            if name in before:
                (given, kept), now = before.pop(name), _tensors((args, kwargs))
                if len(given) != len(now) or not all(map(_identical, given, now)):
                    alone[name] = "it writes into what it is given, of which each task would need its own"
                if any(tensor is not kept.get(key) for key, tensor in _kept(module).items()):
                    alone[name] = "it keeps a state from call to call, of which each task would need its own"
            record[name].append((_seen((args, kwargs)), _seen(output)))

        if isinstance(layer, Owner):
            handles.append(layer.register_forward_pre_hook(enters, with_kwargs=True))
        handles.append(layer.register_forward_hook(leaves, with_kwargs=True))
    try:
        return run(*inputs[0], **inputs[1]), record
    finally:
        for handle in handles:
            handle.remove()


def _identical(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are equal, NaN and all."""
    return a.shape == b.shape and torch.equal(a.nan_to_num(), b.nan_to_num())


def _kept(module: nn.Module) -> dict[str, Tensor]:
    """Tensors that a module holds beside its parameters."""
    return {k: v for k, v in {**vars(module), **module._buffers}.items() if isinstance(v, Tensor)}


def _tensors(tree: object) -> list[Tensor]:
    """Of those that lie on several processes what is here, which has the batch where they have it."""
    return [local(leaf) for leaf in tree_leaves(opened(tree)) if isinstance(leaf, Tensor)]


def _seen(tree: object) -> list[Seen]:
    return [Seen.of(tensor) for tensor in _tensors(tree)]


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """No gradients, no dropout, for a while."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True
