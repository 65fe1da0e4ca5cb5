"""A model's banks and tables replaced by plain ones, for as long as a program is made of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from dts.exports.program.banks import PlainComponents, PlainNothing
from dts.exports.program.samples import PlainSamples
from dts.exports.program.shared import Shared
from dts.exports.program.tables import PlainTable
from dts.nn.deltas import MatrixDelta, ParameterDelta
from dts.nn.layers import DTSNorm, Layer, Owner
from dts_kernels import Routing
from dts_kernels.parts import Joined, PartBank
from dts_kernels.parts.components import ComponentBank
from dts_kernels.parts.sample import SamplePartBank


@contextmanager
def plain_banks(layers: Mapping[str, Layer], factors: nn.ModuleDict, shared: Shared, rows: bool) -> Iterator[None]:
    """For a while the layers run on plain banks, which are modules of ``factors``; nobody else may run them.

    A head that only the tasks have is NaN meanwhile: a row without a task of its own gets no numbers that mean nothing.
    rows: each row has a task of its own
    """
    with ExitStack() as stack:
        for name, layer in layers.items():
            if rows and isinstance(layer, Owner) and layer.dts.slots:
                stack.enter_context(_runs(layer, partial(layer.forward_made, _each)))
            if rows and isinstance(layer, DTSNorm):
                # what its vmap leaves in a program, ONNX has no word for
                stack.enter_context(_runs(layer, layer.broadcast))
            if layer.dts.heads and not layer.dts.in_base:
                stack.enter_context(_no_head(layer))
            for parameter, delta in layer.dts.parameters.items():
                where = f"{name}__{parameter}".replace(".", "_")
                for expert, matrix in delta.matrices.items():
                    one = where + ("" if expert is None else f"__{expert}")
                    stack.enter_context(_plain_matrix(matrix, one, factors, shared))
                stack.enter_context(_plain_tables(delta, where, factors, shared))
        yield


def broadcasts(layer: Owner) -> bool:
    """Whether the parameters that tasks change could have a value a row: class tokens and position tables, which a
    module adds to every row of the batch.  Whether it really does so is for a run of it to show."""
    return all(
        not (delta.values.tensors or delta.added.tensors or delta.transposed)
        and bool(delta.shape)
        and (delta.shape[0] == 1 or len(delta.shape) == 1 and not delta.matrices)
        for delta in layer.dts.parameters.values()
        if delta.slots
    )


@contextmanager
def _runs(layer: Layer, forward: Callable[..., Any]) -> Iterator[None]:
    """The layer with another forward."""
    vars(layer)["forward"] = forward
    try:
        yield
    finally:
        del vars(layer)["forward"]


def _each(delta: ParameterDelta, base: Tensor, routing: Routing) -> Tensor:
    """A value for each row of the routing: [rows, ...] of a parameter [1, ...], [rows, 1, n] of a vector."""
    rows = routing.slots.shape[0]
    y = base.expand(rows, *base.shape[1:]) if base.dim() > 1 else base.expand(rows, 1, *base.shape)
    for matrix in delta.matrices.values():  # [1, N] as it is, or the one matrix of a stack of one
        m, n = matrix.shape
        ids = torch.arange(m, device=base.device).expand(rows, m)
        y = matrix.add_embedding(ids, y.reshape(rows, m, n), routing).view(y.shape)
    return y + delta.raw.rows(routing, y.dtype).view(y.shape) if delta.raw.tensors else y


@contextmanager
def _no_head(layer: Layer) -> Iterator[None]:
    before: dict[str, Any] = dict(layer._parameters)
    for name, value in before.items():
        if value is not None and value.is_floating_point():
            layer._parameters[name] = nn.Parameter(torch.full_like(value, torch.nan), requires_grad=False)
    try:
        yield
    finally:
        layer._parameters.update(before)


@contextmanager
def _plain_matrix(matrix: MatrixDelta, where: str, factors: nn.ModuleDict, shared: Shared) -> Iterator[None]:
    pieces = [(matrix.main, None), *[(block.packed, block.lookup) for block in matrix._all_blocks()]]
    before = [(packed, dict(vars(packed))) for packed, _ in pieces]
    joined = matrix._joined
    try:
        for number, (packed, _) in enumerate(pieces):
            packed.banks = {kind: _plain(bank, shared) for kind, bank in packed.banks.items() if bank.slots}
            for kind, bank in packed.banks.items():
                if isinstance(bank, nn.Module):
                    factors[f"{where}__{kind}{number or ''}"] = bank
            packed._refresh()
        rows = matrix.shape[0]
        matrix._joined = [Joined([(bank, lookup)], rows) for packed, lookup in pieces for bank in packed.filled]
        if matrix.main.first is None:
            matrix.main.first = nothing = PlainNothing(shared)
            matrix.main.filled = [nothing]
        yield
    finally:
        matrix._joined = joined
        for packed, fields in before:
            vars(packed).update(fields)


def _plain(bank: PartBank, shared: Shared) -> PartBank:
    if isinstance(bank, ComponentBank):
        return PlainComponents({slot: bank.bank.factors(slot) for slot in bank.slots}, shared)
    if isinstance(bank, SamplePartBank):
        own = bank.bank
        return PlainSamples({slot: own.samples(slot) for slot in own.slots}, own.transposed, shared)
    return bank  # of another kind: as it is


@contextmanager
def _plain_tables(delta: ParameterDelta, where: str, factors: nn.ModuleDict, shared: Shared) -> Iterator[None]:
    before = {name: getattr(delta, name) for name in ("raw", "values", "added")}
    try:
        for name, table in before.items():
            if table.filled:
                factors[f"{where}__{name}"] = made = PlainTable(table, shared)
                setattr(delta, name, made)
        yield
    finally:
        for name, table in before.items():
            setattr(delta, name, table)
