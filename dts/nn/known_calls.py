"""Where the rows are in each kind of call of a model: looked for once, and remembered."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from dts.nn.layers import Layer
from dts.nn.layers.kept import PLAIN
from dts.nn.routing import RoutingState
from dts.nn.rows import COUPLED, MORE, Inputs, RowAxes, find_rows, shared

REMEMBERED = 32  # kinds of calls


class KnownCalls:
    """The `RowAxes` of the last kinds of calls: a method, and which arguments of which kind it is given."""

    def __init__(self) -> None:
        self.found: OrderedDict[tuple[Any, ...], RowAxes] = OrderedDict()

    @torch.no_grad()  # a checkpoint counts what is kept for gradients, and would find less when it runs again
    def where(
        self,
        model: nn.Module,
        layers: dict[str, Layer],
        state: RoutingState,
        run: Callable[..., Any],
        method: str,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        rows: int,
    ) -> RowAxes:
        """Where the rows are in ``run(*args, **kwargs)``, a method of this name, of a batch with so many rows."""
        several = _several_a_row(run, method, kwargs)
        key = several, *_kind_of_call(method, args, kwargs, rows)
        if key in self.found:
            return self.found[key]
        whole = _whole(model, state, run, method, args, kwargs, rows)
        most = min(rows, MORE)
        one, two, more = (_first_rows(method, args, kwargs, rows, list(range(n)), whole) for n in (1, 2, most))
        try:
            where = find_rows(model, layers, state, run, one, two, more if rows > 2 else None, most)
        except Exception:  # not for so few rows: all together, and what is wrong with them the call itself will say
            return RowAxes(out_axes=[COUPLED])
        where.whole, self.found[key] = whole, where
        if several:  # what all rows share is repeated for each row of the batch, of which there are more then
            reason = "it has one input or output for all rows, and a row has several beams or sequences"
            where.unroutable |= {name: reason for name in layers if where.shares(name)}
        while len(self.found) > REMEMBERED:
            self.found.popitem(last=False)
        return where


def check_rows(rows: int, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Raises ValueError if no input has as many rows as there are items of ``tasks``."""
    if any(isinstance(leaf, Tensor) and leaf.is_nested for leaf in (*args, *kwargs.values())):
        raise ValueError("rows of a nested tensor cannot have tasks of their own: pad them, or call once a task")
    shapes = shapes_of(args, kwargs)
    if not any(shape and shape[0] == rows for shape in shapes.values()):
        mappings = [value for value in args if isinstance(value, Mapping)]
        way = "; give the tensors of a dict by their names, model(**batch, tasks=...)" if mappings else ""
        raise ValueError(f"tasks has {rows} items, one a row, but no input has {rows} rows: {shapes}{way}")


def shapes_of(args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, list[int]]:
    """Shapes of the tensors among the arguments, by what an error calls them."""
    tensors = {**{f"argument {i}": v for i, v in enumerate(args)}, **kwargs}
    return {name: list(v.shape) for name, v in tensors.items() if isinstance(v, Tensor)}


def _several_a_row(run: Callable[..., Any], method: str, kwargs: Mapping[str, Any]) -> bool:
    """Whether a method computes with more rows than it is given: beams, or several sequences of each."""
    if method != "generate":
        return False
    settings = kwargs.get("generation_config") or getattr(getattr(run, "__self__", None), "generation_config", None)
    given = [kwargs.get(name, getattr(settings, name, None)) for name in ("num_beams", "num_return_sequences")]
    return any(number is not None and number > 1 for number in given)


def rows_of(value: Any, take: list[int], rows: int) -> Any:
    """The given rows of a tensor that has ``rows`` of them, also of those in containers, and of a list of one thing a
    row; anything else as it is."""
    if isinstance(value, Tensor):
        return value[take] if value.dim() and value.shape[0] == rows else value
    if any(leaf.dim() and leaf.shape[0] == rows for leaf in _tensors_of(value)):
        return tree_map(lambda leaf: rows_of(leaf, take, rows) if isinstance(leaf, Tensor) else leaf, value)
    if type(value) is list and len(value) == rows and all(isinstance(one, Tensor | str) for one in value):
        return [value[i] for i in take]
    return value


def _plain(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in kwargs.items() if isinstance(v, (bool, int, float, str))}


def _held(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Tensors, and containers of nothing but these and plain values."""
    containers = {k: v for k, v in kwargs.items() if isinstance(v, list | tuple | dict)}
    containers = {k: v for k, v in containers.items() if all(isinstance(leaf, PLAIN) for leaf in tree_leaves(v))}
    return containers | {k: v for k, v in kwargs.items() if isinstance(v, Tensor)}


def _kind_of_call(method: str, args: Sequence[Any], kwargs: Mapping[str, Any], rows: int) -> tuple[Any, ...]:
    plain = _plain(kwargs)
    kinds = {k: v for k, v in plain.items() if isinstance(v, (bool, str))}
    numbers = {k: v for k, v in plain.items() if k not in kinds}
    # of generate, numbers are lengths and temperatures
    kinds |= {k: type(v).__name__ if method == "generate" else _kind_of_number(v) for k, v in numbers.items()}
    given = [*enumerate(args), *kwargs.items()]
    leaves = [(str(k), leaf) for k, v in given for leaf in _tensors_of(v)]
    tensors = [(k, leaf.dim(), leaf.dim() and leaf.shape[0] == rows) for k, leaf in leaves]
    return (method, len(args), *sorted(tensors), *sorted(kinds.items()))


def _tensors_of(value: Any) -> list[Tensor]:
    """A tensor, or those in containers; none of other objects."""
    if not isinstance(value, Tensor | list | tuple | dict):
        return []
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]


def _kind_of_number(value: int | float) -> str:
    """None, one and several may be different calls (`logits_to_keep`); which number of several is not, nor a scale."""
    return "float" if isinstance(value, float) else f"int {max(-1, min(value, 2))}"


def _whole(
    model: nn.Module,
    state: RoutingState,
    run: Callable[..., Any],
    method: str,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    rows: int,
) -> frozenset[int | str]:
    """Places and names of vectors that are as long as the batch and yet not of its rows, as scales of features: the
    base tells it, whose answer to all rows has that to the first one."""
    given: dict[int | str, Any] = dict(enumerate(args))
    given.update(kwargs)
    vectors = frozenset(
        name
        for name, value in given.items()
        if isinstance(value, Tensor) and value.shape == (rows,) and "label" not in str(name)
    )
    others = any(isinstance(value, Tensor) and value.dim() > 1 and value.shape[0] == rows for value in given.values())
    if method == "generate" or not vectors or not others:
        return frozenset()
    taken, kept = (_first_rows(method, args, kwargs, rows, [0], names) for names in (frozenset[int | str](), vectors))
    return vectors if shared(model, state, run, (args, kwargs), taken, kept) else frozenset()


def _first_rows(
    method: str,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    rows: int,
    take: list[int],
    whole: frozenset[int | str] = frozenset(),
) -> Inputs:
    """The same call of some rows only, and as short as one can be."""
    kept = shortest(method, kwargs)
    part = lambda name, value: value if name in whole else rows_of(value, take, rows)  # noqa: E731
    kept |= {k: v.dts_rows(take) for k, v in kwargs.items() if hasattr(v, "dts_rows")}
    return [part(i, v) for i, v in enumerate(args)], {k: part(k, v) for k, v in kept.items()}


def shortest(method: str, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The keywords of a call that is as short as one can be.

    Of objects only those are kept that have a method ``dts_rows(rows)``, which gives a copy of some rows: caches that a
    call cannot do without.
    """
    kept = _plain(kwargs) | _held(kwargs) | {k: v for k, v in kwargs.items() if hasattr(v, "dts_rows")}
    if method == "generate":
        kept |= {"max_new_tokens": 2, "do_sample": False, "num_beams": 1, "num_return_sequences": 1}
        kept.pop("max_length", None)
        if kept.get("cache_implementation") is not None:  # no program is made for so few rows
            kept["disable_compile"] = True
        kept |= {k: v for k, v in kwargs.items() if k == "generation_config"}  # where decoding starts, and ends
    return with_first_labels(kept)


def with_first_labels(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The keywords of a call of the base, which has perhaps fewer classes than the rows' tasks: any label that all have
    will do."""
    return {
        k: torch.zeros_like(v) if "label" in k and isinstance(v, Tensor) and not v.is_floating_point() else v
        for k, v in kwargs.items()
    }
