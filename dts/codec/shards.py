"""Rows and columns of a compressed matrix: what one process of a tensor-parallel model has of it.

Components are cut row by row of U and V.  The places of a sample follow from its seed, a block of G rows and a group of
G columns each: of a matrix that begins at a block and a group they are those of another seed (`dts_kernels.samples`),
so a cut within a block or a group takes the whole of it, with `Cut.rows` and `Cut.columns` too many in front.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from dts.codec import Factors
from dts_kernels.layout import PackedFactors, pack, unpack
from dts_kernels.samples import ALL, Samples, elements_of, seed_at


@dataclass(frozen=True)
class Cut:
    """A sample of rows and columns of a matrix, and how many of its first rows and columns are none of them."""

    sample: Samples
    rows: int
    columns: int


@dataclass(frozen=True)
class Shard:
    """factors: what of it is a matrix's parts as any other;  cuts: samples that begin before it;
    rows, columns: where the cuts' own go in it, None: all in order."""

    factors: Factors
    cuts: tuple[Cut, ...]
    rows: Tensor | None
    columns: Tensor | None


def shard(factors: Factors, rows: range, columns: range) -> Shard | None:
    """Those rows and columns of a matrix as one of its own; None where nothing of it is there.

    What is cut has tensors of its own, so that the rest need not stay in memory.
    """
    m, n = factors.shape
    if len(rows) == m and len(columns) == n:
        return Shard(factors, (), factors.rows, factors.columns)
    kept, places = _within(factors.rows, rows)
    held, across = _within(factors.columns, columns)
    if not len(kept) or not len(held):
        return None
    stored, cuts = list[Any](), list[Cut]()
    for data in factors.stored:
        if isinstance(data, PackedFactors):
            u, v = (getattr(data, side)[at.start : at.stop].clone() for side, at in (("u", kept), ("v", held)))
            stored.append(PackedFactors(u, v, data.sigma, data.levels))
            continue
        cut = cut_sample(data, kept, held)
        if cut.rows or cut.columns:
            cuts.append(cut)
        else:
            stored.append(cut.sample)
    shape = len(rows), len(columns)
    own = replace(factors, stored=tuple(stored), shape=shape, rows=places, columns=across, squared_error=None)
    return Shard(own, tuple(cuts), places, across)


def _within(index: Tensor | None, wanted: range) -> tuple[range, Tensor | None]:
    """(rows of the compact matrix that are wanted, where they go): ``index`` is ascending, as `Factors` has it."""
    if index is None:
        return wanted, None
    first, last = torch.searchsorted(index, torch.tensor([wanted.start, wanted.stop])).tolist()
    return range(first, last), index[first:last] - wanted.start


def cut_sample(sample: Samples, rows: range, columns: range) -> Cut:
    """A sample of those rows and columns, whole blocks and groups in front; of one that is thinned all groups in front,
    as its windows begin with the first."""
    block = rows.start // sample.stride
    group = columns.start // sample.stride if sample.share == ALL else 0
    first, start = block * sample.stride, group * sample.stride
    codes = sample.codes[first : rows.stop]
    elements = elements_of(columns.stop - start, sample.stride, sample.share)
    if elements != sample.elements:
        codes = pack(unpack(codes, sample.elements)[:, group : group + elements])
    seed = seed_at(sample.seed, block, group)
    shape = rows.stop - first, columns.stop - start
    own = Samples(codes.clone(), sample.scale, sample.stride, seed, shape, sample.share)
    return Cut(own, rows.start - first, columns.start - start)
