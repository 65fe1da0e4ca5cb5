"""A batch of several tasks, one task at a time: for models in which the rows cannot be routed together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from dts.nn.caches import refuse_caches
from dts.nn.known_calls import rows_of
from dts.nn.layers.owner import join_rows
from dts.nn.routing import Mixture, groups
from dts.nn.rows import RowAxes
from dts.nn.trees import closed, opened


def run_once_a_task(
    run: Callable[..., Any],
    method: str,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    mixtures: list[Mixture],
    where: RowAxes,
    uniform: Callable[[Mixture], AbstractContextManager[None]],
) -> Any:
    """Run once a distinct mixture and put the rows' outputs together in the batch's order.

    uniform: a context in which every row uses one mixture.  Outputs without a row for each of the batch (a loss, a
    cache, the features of shared texts) are None unless all tasks agree on them.
    """
    if method != "generate":
        refuse_caches(args, kwargs)
    rows, results, places, last = len(mixtures), [], [], None
    for mixture, chosen in groups(mixtures):
        # rows that meet in the outputs (an image against all texts) must all be there
        take = list(range(rows)) if where.coupled else chosen
        part = lambda v, take=take: rows_of(v, take, rows)  # noqa: E731
        with uniform(mixture):
            own_args = [v if i in where.whole else part(v) for i, v in enumerate(args)]
            result = run(*own_args, **{k: v if k in where.whole else part(v) for k, v in kwargs.items()})
        last = result
        result = opened(result)
        results.append(_select(result, chosen, rows) if where.coupled else result)
        places += chosen
    if method == "generate":
        return _join_sequences(results, places, kwargs, run)
    axes = None if where.coupled else where.out_axes
    if not any(isinstance(leaf, Tensor) for leaf in tree_leaves(results)):
        raise ValueError(
            f"this model runs batches of several tasks once a task (see status()), and rows of a {type(last).__name__} "
            "cannot be put together: give rows of one task at a time"
        )
    return closed(last, join_rows([_without_state(result) for result in results], places, axes, drop=True))


def _select(result: Any, rows: list[int], count: int) -> Any:
    """The given rows of every output that has a row for each of the batch; None for the others."""
    keep = lambda t: t[rows] if isinstance(t, Tensor) and t.dim() and t.shape[0] == count else None  # noqa: E731
    kept = tree_map(keep, result)
    if not any(isinstance(leaf, Tensor) for leaf in tree_leaves(kept)):
        shapes = [list(leaf.shape) for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        raise ValueError(f"tasks has {count} items, one a row, but no output has a row for each: {shapes}")
    return kept


def _without_state(result: Any) -> Any:
    """Caches of one task are no cache of the batch."""
    leaves, spec = tree_flatten(result)
    plain = (Tensor, bool, int, float, str, type(None))
    return tree_unflatten([leaf if isinstance(leaf, plain) else None for leaf in leaves], spec)


def _join_sequences(results: list[Any], places: list[int], kwargs: Mapping[str, Any], run: Callable[..., Any]) -> Any:
    """Generated ids of all groups, right-padded to the longest."""
    if not all(isinstance(result, Tensor) for result in results):
        raise NotImplementedError(
            "this model runs batches of several tasks once a task (see status()), and then generate gives token ids "
            "only: leave out return_dict_in_generate"
        )
    config = getattr(getattr(run, "__self__", None), "generation_config", None)
    pad = kwargs.get("pad_token_id", getattr(config, "pad_token_id", None))
    pad = pad if pad is not None else 0
    longest = max(result.shape[1] for result in results)
    padded = [torch.nn.functional.pad(r, (0, longest - r.shape[1]), value=pad) for r in results]
    return join_rows(padded, places, [0])
