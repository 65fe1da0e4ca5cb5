"""Rows of a bank's deltas added to an embedding's again, by the one launch that did it before; see `replay`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import check as checks
from .. import contents, dispatch
from ..bank import Bank
from ..gpu import launch, products
from ..gpu.alike import Check, alike
from ..gpu.flat import flat
from ..gpu.launch import ALIGNMENT
from ..routing import Routing
from .kinds import remembered, stream_of
from .library import direct
from .run import choice, fit

RAN = "add_embedding", "triton"


class Recorded(NamedTuple):
    """Of calls that are alike.

    check: `alike` of ids, y, slots and weights;  derived: what the bank derived;  table, version: of its contents
    card: as `launch.Launcher.index` has it;  launches: see `gpu.flat`, ids are its x
    """

    check: Check
    derived: Any
    table: Tensor
    version: int | None
    card: int
    launches: Callable[..., None]


class ReplayRows:
    """The rows of one bank of kernel words, which has all rows of its matrix."""

    def __init__(self, bank: Bank):
        self.bank = bank
        self._recorded: list[Recorded] = []

    def __getstate__(self) -> dict[str, Any]:
        """A copy's bank is elsewhere."""
        return vars(self) | {"_recorded": []}

    def add(self, ids: Tensor, y: Tensor, routing: Routing) -> Tensor | None:
        """`ops.add_embedding`, in place; None, with nothing done, where that is to be asked."""
        slots, weights, now = routing.slots, routing.weights, self.bank.ready
        for recorded in self._recorded:
            check, derived, *_ = recorded
            if derived is now and check(ids, y, slots, weights):
                break
        else:
            found = self._record(ids, y, routing)
            if found is None:
                return None
            recorded = found
        _, _, table, version, card, launches = recorded
        stream = stream_of(card, table, version)
        if stream is None:
            return None
        at, to, rows, gammas = ids.data_ptr(), y.data_ptr(), slots.data_ptr(), weights.data_ptr()
        if (at | to | rows | gammas) % ALIGNMENT or not at or not to:
            return None
        launches(stream, at, to, rows, gammas, 0, 0, 0, 0)
        dispatch.ran[RAN] += 1
        return y

    def _record(self, ids: Tensor, y: Tensor, routing: Routing) -> Recorded | None:
        """What repeats such calls, kept; None unless `launch.run` made one and may make it again now."""
        bank, slots, weights = self.bank, routing.slots, routing.weights
        if not (
            direct(ids, y)
            and ids.dtype in checks.IDS
            and ids.numel()
            and y.shape == (*ids.shape, bank.in_features)
            and slots.dtype is torch.int32
            and weights.dtype is torch.float32
            and weights.shape == slots.shape
            and not ids.numel() % max(1, slots.shape[0])
            and checks.launched(ids, y, slots, weights)
        ):
            return None
        kind = dispatch.device_kind(ids.device.type), y.dtype, ids.numel(), *slots.shape
        if choice("add_embedding", *kind, "planar", False, bank.max_rank == 0, dispatch.exact())[0] != RAN:
            return None
        operands = bank.operands(routing)
        fit(ids, operands, bank.out_features, bank.in_features)
        call = products.rows_call(ids, operands, y, adds=True)
        bound, constant = launch.bound_before(call), [t.data_ptr() for t in (*operands.packed, operands.table)]
        if bound is None or any(pointer % ALIGNMENT for pointer in constant):
            return None
        check = alike(ids, y, slots, weights)
        if check is None:
            return None
        launches = flat([(bound, ("x", *constant, "slots", "weights", "y", "y"))])
        version, card = contents.version_of(operands.table), launch.launcher.index(ids)
        made = Recorded(check, bank.ready, operands.table, version, card, launches)
        self._recorded = remembered(self._recorded, made, lambda one: one.derived is bank.ready)
        return made
