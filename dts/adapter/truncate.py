"""A smaller adapter from a larger one, without the fine-tune: a prefix of every matrix's components, 8-bit vectors."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from dts.adapter.budget import BLOCK, Curve, allocate_exactly, levelled
from dts.adapter.entries import AdapterError, Entry
from dts.adapter.sizes import HEADER_BYTES, measured, whole_error
from dts.adapter.text import measure
from dts.adapter.vectors import elements, in_few_bits, rounding_for
from dts.codec import Factors
from dts.codec.methods import method_of
from dts.values import LARGEST

if TYPE_CHECKING:
    from dts.adapter.adapter import Adapter


def prefix_curve(factors: Factors) -> Curve:
    """Bytes and remaining error of every prefix of whole blocks (and of all components).

    Parts that are no components stay or go: with them counts as one rank more, and as if they took as large a share of
    what they found as the components did.
    """
    low_rank = factors.low_rank()
    if low_rank is not factors:
        curve = prefix_curve(low_rank)
        left = curve.errors[-1] ** 2 / factors.norm**2
        if not low_rank.stored:
            left = (factors.squared_error or 0.0) * factors.norm**2
        return Curve(
            np.append(curve.ranks, factors.rank + 1),
            np.append(curve.bytes, factors.nbytes + HEADER_BYTES),
            np.append(curve.errors, left),
        )
    rank, runs = factors.rank, factors.runs
    if len(runs) != 1:  # how several share what they explain is not known: all of them or none
        ranks = np.unique([0, rank])
        error = 0.0 if factors.squared_error is None else factors.squared_error
        return Curve(
            ranks,
            np.where(ranks > 0, factors.nbytes + HEADER_BYTES, 0),
            np.where(ranks > 0, error, 1.0) * factors.norm**2,
        )
    kind, data = runs[0]
    ranks = np.unique(np.append(np.arange(0, rank, BLOCK), rank))
    errors = kind.prefix_left(data, factors.norm).numpy()[ranks]
    nbytes = kind.prefix_bytes(data, ranks) + np.where(ranks > 0, factors.index_nbytes + HEADER_BYTES, 0)
    return Curve(ranks, nbytes, errors * factors.norm**2)


def cut(entry: Entry, ranks: list[int]) -> Entry | None:
    """The entry with its matrices' first components (all parts: one rank more); None if nothing is left of it."""
    kept = [
        None if f is None or not k else f if k > f.rank else f.low_rank().prefix(k)
        for f, k in zip(entry.matrices, ranks, strict=True)
    ]
    if all(f is None for f in kept) and entry.added_rows is None:
        return None
    return replace(entry.with_matrices(kept), squared_error=whole_error(entry.norm, kept))


def shortened(entries: dict[str, Entry], method: str, nbytes: int) -> dict[str, Entry]:
    """Exact vectors and heads in few bits, as `dts.compress` has them where bytes are asked for; the rest as it is."""
    if not method_of(method).rounds_vectors:
        return entries
    about = [(e.shape, e.dtype, e.task_only) for e in entries.values() if e.kind in ("delta", "value")]
    rounding = rounding_for(nbytes, *elements(about))
    return {
        name: in_few_bits(entry, entry.numbers(torch.float64), rounding) if entry.kind in ("delta", "value") else entry
        for name, entry in entries.items()
    }


def truncated(adapter: Adapter, nbytes: int) -> Adapter:
    """The adapter cut to at most ``nbytes``; changes the adapter given, not its entries."""
    config = adapter.config
    whole = shortened(adapter.entries, adapter.method, nbytes)
    found = [(name, i, f) for name, entry in whole.items() for i, f in enumerate(entry.matrices) if f is not None]
    curves = levelled([prefix_curve(f) for _, _, f in found], [math.prod(f.compact_shape) for _, _, f in found])
    base_digests = {name: row.get("base") for name, row in config["tensors"].items()}
    dropped = dict(config["dropped"])

    def entries(ranks: list[int]) -> dict[str, Entry]:
        chosen = {name: [0] * len(entry.matrices) for name, entry in whole.items()}
        for (name, i, _), rank in zip(found, ranks):
            chosen[name][i] = rank
        kept = {name: cut(entry, chosen[name]) if chosen[name] else entry for name, entry in whole.items()}
        config["dropped"] = dropped | {
            name: measure(whole[name].norm)
            for name, entry in kept.items()
            if whole[name].norm and (entry is None or entry.matrices == [None])
        }
        return {name: entry for name, entry in kept.items() if entry is not None}

    def total(ranks: list[int]) -> int:
        return measured(config, entries(ranks), base_digests)

    adapter.entries = entries(allocate_exactly(curves, nbytes, total))
    wrong = [
        name
        for name, entry in adapter.entries.items()
        for f in entry.matrices
        if f is not None and not f.largest <= LARGEST
    ]
    if wrong:
        raise AdapterError(
            f"{', '.join(dict.fromkeys(wrong))}: the recorded norm does not belong to the components, "
            "so that no shorter ones can be made of them"
        )
    measured(config, adapter.entries, base_digests, digests=True)
    return adapter
