"""A smaller adapter from a larger one, without the fine-tune: of every matrix a prefix of its components and a share of
its sample, vectors in few bits."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

import torch

from dts.adapter.budget import allocate_exactly, levelled, share_of
from dts.adapter.entries import Entry
from dts.adapter.errors import AdapterError
from dts.adapter.matrix import counted
from dts.adapter.prefixes import Prefixes
from dts.adapter.sizes import measured, whole_error
from dts.adapter.text import measure
from dts.adapter.vectors import elements, in_few_bits, rounding_for
from dts.codec import Factors
from dts.codec.methods import method_of
from dts.shapes import is_of_tokens
from dts.values import LARGEST

if TYPE_CHECKING:
    from dts.adapter.data import AdapterData


Of = TypeVar("Of", bound="AdapterData")


def cut(entry: Entry, found: list[Prefixes | None], ranks: list[int], planned: bool) -> Entry | None:
    """The entry with what is kept of its matrices at these ranks; None if nothing is left of it.

    planned: without the content of what is made anew.
    """
    given = zip(found, ranks, strict=True)
    kept = [None if one is None else one.planned(rank) if planned else one.at(rank) for one, rank in given]
    if all(f is None for f in kept) and entry.added_rows is None:
        return None
    return replace(entry.with_matrices(kept), squared_error=whole_error(entry.norm, kept))


def shortened(entries: dict[str, Entry], method: str, nbytes: int) -> dict[str, Entry]:
    """Vectors and heads in few bits, as `dts.compress` has them where bytes are asked for; the rest as it is.

    Of a sketch also those that have more bits than so many bytes take: what else is cut does not know its error either.
    """
    if not method_of(method).rounds_vectors:
        return entries
    about = [(e.shape, e.dtype, e.task_only) for e in entries.values() if e.kind in ("delta", "value")]
    rounding = rounding_for(nbytes, *elements(about))
    further = any(factors is not None and factors.samples for entry in entries.values() for factors in entry.matrices)
    return {
        name: in_few_bits(entry, entry.numbers(torch.float64), rounding, further)
        if entry.kind in ("delta", "value")
        else entry
        for name, entry in entries.items()
    }


def _counts(name: str, factors: Factors, elements: int, share: float) -> float:
    """As `dts.adapter.matrix.Matrix.counts`: of a table whose rows moved unevenly only some rows are stored."""
    table = factors.rows is None and is_of_tokens(name, factors.shape)
    return counted(elements, factors.shape, share) if table else elements


def truncated(adapter: Of, nbytes: int, again: bool) -> Of:
    """The adapter cut to at most ``nbytes``; changes the adapter given, not its entries.

    again: a sketch's components made anew (`dts.codec.shorter`).
    """
    config = adapter.config
    beside = adapter.beside
    whole = shortened(adapter.entries, adapter.method, nbytes)
    found = {
        name: [None if f is None else Prefixes.of(f, again) for f in entry.matrices] for name, entry in whole.items()
    }
    every = [(name, one) for name, of_entry in found.items() for one in of_entry if one is not None]
    sizes = [math.prod(one.factors.compact_shape) for _, one in every]
    share = share_of(nbytes, [one.factors.shape for _, one in every])
    counts = [_counts(name, one.factors, count, share) for (name, one), count in zip(every, sizes)]
    curves = levelled([one.curve for _, one in every], sizes, counts)
    base_digests = {name: row.get("base") for name, row in config["tensors"].items()}
    dropped = dict(config["dropped"])

    def entries(ranks: list[int], planned: bool = False) -> dict[str, Entry]:
        left = iter(ranks)
        chosen = {name: [0 if one is None else next(left) for one in of_entry] for name, of_entry in found.items()}
        kept = {
            name: cut(entry, found[name], chosen[name], planned) if chosen[name] else entry
            for name, entry in whole.items()
        }
        config["dropped"] = dropped | {
            name: measure(whole[name].norm)
            for name, entry in kept.items()
            if whole[name].norm and (entry is None or entry.matrices == [None])
        }
        return {name: entry for name, entry in kept.items() if entry is not None}

    def total(ranks: list[int]) -> int:
        return measured(config, entries(ranks, planned=True), base_digests, beside=beside)

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
    measured(config, adapter.entries, base_digests, digests=True, beside=beside)
    return adapter
