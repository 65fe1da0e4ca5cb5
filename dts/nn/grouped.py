"""A batch of several tasks, one task at a time: for models in which the rows cannot be routed together."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from dts.nn.layers.owner import join_rows
from dts.nn.probe import Layout
from dts.nn.routing import Mixture, groups


def run_grouped(run, method: str, args, kwargs, mixtures: list[Mixture], layout: Layout, uniform):
    """Run once a distinct mixture and put the rows' outputs together in the batch's order.

    uniform: a context in which every row uses one mixture.  Outputs without a row for each of the batch (a loss, a
    cache, the features of shared texts) are None unless all tasks agree on them.
    """
    rows, results, places = len(mixtures), [], []
    for mixture, chosen in groups(mixtures):
        # rows that meet in the outputs (an image against all texts) must all be there
        take = list(range(rows)) if layout.coupled else chosen
        part = lambda v, take=take: _take(v, take, rows)  # noqa: E731
        with uniform(mixture):
            result = run(*[part(v) for v in args], **{k: part(v) for k, v in kwargs.items()})
        results.append(_select(result, chosen, rows) if layout.coupled else result)
        places += chosen
    if method == "generate":
        return _join_sequences(results, places, kwargs, run)
    axes = None if layout.coupled else layout.out_axes
    return join_rows([_without_state(result) for result in results], places, axes, drop=True)


def _take(value, rows: list[int], count: int):
    if isinstance(value, Tensor) and value.dim() and value.shape[0] == count:
        return value[rows]
    return value


def _select(result, rows: list[int], count: int):
    """The given rows of every output that has a row for each of the batch; None for the others."""
    keep = lambda t: t[rows] if isinstance(t, Tensor) and t.dim() and t.shape[0] == count else None  # noqa: E731
    return tree_map(keep, result)


def _without_state(result):
    """Caches of one task are no cache of the batch."""
    leaves, spec = tree_flatten(result)
    plain = (Tensor, bool, int, float, str, type(None))
    return tree_unflatten([leaf if isinstance(leaf, plain) else None for leaf in leaves], spec)


def _join_sequences(results: list, places: list[int], kwargs: dict, run):
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
