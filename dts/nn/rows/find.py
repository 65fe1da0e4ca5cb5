"""Where the rows of the batch are in each layer's input: found by running the base on one row and on two.

A layer sees a tensor, not the batch: [batch, ...], [sequence, batch, ...], tokens flattened batch-major, position ids
[1, ...] that all rows share, or relative positions [query, key] that only look like a batch.  What grows when a row is
added is the batch axis; values show whether flattened rows stay together.  Nothing is assumed of an architecture.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from dts.checkpoint.errors import first_line
from dts.nn.layers import UNROUTABLE, Layer
from dts.nn.layers.kept import PLAIN, alone, as_they_were
from dts.nn.layers.layer_deltas import RowsApart
from dts.nn.routing import RoutingState
from dts.nn.rows.axes import COUPLED, NO_AXIS, ORDER, RowAxes, compare, rows_of_answer
from dts.nn.rows.inputs import turned_round, with_other_values
from dts.nn.rows.seen import SAME, Inputs, Record, Seen, begins_with, grows, is_sorted, recorded, seen_in, tensors_in

VALUES = "how many inputs it has depends on the values of a row"
BYPASSED = "another module reads its parameters, for all rows at once"
MORE = 8  # rows of a batch that are looked at
_NUMBER = re.compile(r"\d+")


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
        first, record_one = recorded(layers, run, one, {})
        second, record_two = recorded(layers, run, two, by_itself)
        where = compare(layers, record_one, record_two, by_itself)
        where.out_axes = [rows_of_answer(a, b) for a, b in zip(seen_in(first), seen_in(second))]
        if (turned := turned_round(two)) is not None:
            _, record_turned = recorded(layers, run, turned, {})
            for name, calls in record_two.items():
                if (axis := where.axis.get(name, NO_AXIS)) >= 0 and is_sorted(calls, record_turned[name], axis):
                    where.unroutable[name] = ORDER
        if more is not None:
            _look_at_more(layers, run, more, rows, where, (record_one, record_two), seen_in(second))
        pad = getattr(getattr(model, "config", None), "pad_token_id", None)
        _look_at_other_values(
            layers, run, with_other_values(one, pad if isinstance(pad, int) else 0), where, record_one
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
    found, record = recorded(layers, run, more, {})
    for i, (before, now) in enumerate(zip(answer, seen_in(found))):
        if where.out_axes[i] >= 0 and not begins_with(now, before, where.out_axes[i]):
            where.out_axes[i] = COUPLED
    wrong = {name for name, layer in layers.items() if not grows(layer, records[0][name], record[name], rows)}
    _by_values(layers, where, wrong)
    for name, calls in records[1].items():
        axis = where.axis.get(name, NO_AXIS)
        if axis < 0 or name in where.unroutable:
            continue
        for (one, _), (two, _), (all_rows, _) in zip(records[0][name], calls, record[name]):
            stays = all(begins_with(b, a, axis) for a, b in zip(one[:1], two[:1]))
            if stays and not all(begins_with(b, a, axis) for a, b in zip(two[:1], all_rows[:1])):
                where.unroutable[name] = ORDER


def _look_at_other_values(
    layers: dict[str, Layer], run: Callable[..., Any], other: Inputs | None, where: RowAxes, record_one: Record
) -> None:
    """Finds layers of which one row's values say how many inputs they have: tokens that are no padding, or that a
    router sends to an expert.  The first batch's rows may have the same number of them by chance."""
    if other is None:
        return
    try:
        _, record = recorded(layers, run, other, {})
    except Exception:  # values that are none here
        return
    wrong = {name for name, layer in layers.items() if not grows(layer, record_one[name], record[name], 1)}
    _by_values(layers, where, wrong)


def _by_values(layers: Iterable[str], where: RowAxes, wrong: set[str]) -> None:
    """Those, and their like in other blocks and of other experts."""
    like = {_NUMBER.sub("*", name) for name in wrong}
    where.unroutable |= {name: VALUES for name in layers if _NUMBER.sub("*", name) in like}


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
        expected = [tensor[:1] for tensor in tensors_in(run(*every[0], **every[1])) if tensor.dim()]
        return not _answers(run, taken, expected) and _answers(run, kept, expected)


def _answers(run: Callable[..., Any], inputs: Inputs, expected: Sequence[Tensor]) -> bool:
    """Whether a call gives these tensors."""
    try:
        found = [tensor for tensor in tensors_in(run(*inputs[0], **inputs[1])) if tensor.dim()]
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
        return first_line(error)
    for a, b in zip(tensors_in(found), tensors_in(expected)):
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
