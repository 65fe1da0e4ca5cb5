"""Banks of plain PyTorch, for programs that run where `dts_kernels` is not.

Each is a module whose buffers are the tasks' tensors as their adapters store them, so they keep their two bits in
whatever format the program is written in.  One product is taken with the components of all tasks side by side, each
row's own weighted by gamma and the others by 0: another task is another input, never another program.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dts.exports.program.shared import Shared, byte_table, decoded, wide
from dts.nn.routing import beside
from dts_kernels import PackedFactors, Routing
from dts_kernels.layout import packed_width
from dts_kernels.parts import PartBank
from dts_kernels.rounded import Addends, as_tensor


class Shaped(nn.Module, PartBank):
    """What a bank of a traced program needs of `PartBank`: nothing comes or goes, and the model's own bank is kept."""

    in_features: int
    out_features: int
    own: list[int]
    shared: Shared

    @property
    def slots(self) -> list[int]:
        return self.own

    def add(self, slot: int, data: list[Any]) -> None:
        raise RuntimeError("a program's banks are as they were when it was made")

    def remove(self, slot: int) -> None:
        raise RuntimeError("a program's banks are as they were when it was made")

    def linear(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, routing: Routing, adds: Addends | None = None
    ) -> Tensor:
        y = nn.functional.linear(x, weight, bias)
        if (adds := as_tensor(adds, routing.slots)) is not None:
            y = (y.to(adds.dtype) + beside(y, self.shared.gamma(routing)[:, : adds.shape[0]] @ adds)).to(y.dtype)
        return self.product(x, y, routing)

    @property
    def nbytes(self) -> int:
        return sum(t.nbytes for t in self.held())

    def held(self) -> list[Tensor]:
        return list(self.buffers(recurse=False))


class PlainNothing(Shaped):
    """A bank of no task, of a matrix whose tasks change only some of its rows: it adds what goes beside the product."""

    def __init__(self, shared: Shared):
        super().__init__()
        self.own, self.shared = [], shared

    def product(self, x: Tensor, y: Tensor | None, routing: Routing) -> Tensor:
        assert y is not None  # of `linear`
        return y

    def rows(self, ids: Tensor, y: Tensor, routing: Routing) -> Tensor:
        return y

    def dense(self, gamma: Tensor, base: Tensor | None, dtype: torch.dtype | None = None) -> Tensor:
        assert base is not None  # of a matrix that is changed in some rows
        return base


class PlainComponents(Shaped):
    """Components of all tasks of an [out_features, in_features] matrix.

    factors: slot -> `PackedFactors`.  Ranks that fill up a byte have sigma 0.
    """

    slot: Tensor
    offsets: Tensor

    def __init__(self, factors: Mapping[int, PackedFactors], shared: Shared):
        super().__init__()
        self.shared = shared
        self.own = sorted(factors)
        self.out_features, self.in_features = factors[self.own[0]].shape
        for slot, one in factors.items():
            self.register_buffer(f"task{slot}_u", one.u.clone())
            self.register_buffer(f"task{slot}_v", one.v.clone())
            padding = 4 * packed_width(one.rank) - one.rank
            self.register_buffer(f"task{slot}_sigma", nn.functional.pad(one.sigma.detach(), (0, padding)))
        ranks = [4 * packed_width(factors[slot].rank) for slot in self.own]
        places = torch.arange(len(self.own)).repeat_interleave(torch.tensor(ranks))
        self.register_buffer("slot", torch.tensor(self.own)[places])
        levels = [factors[slot].levels for slot in self.own]
        self.leveled = any(one is not None for one in levels)
        if self.leveled:  # values of its own for each task and side: its bytes point into its own 256 rows
            for side, name in enumerate("uv"):
                tables = [byte_table(None if one is None else one[side]) for one in levels]
                self.register_buffer(f"{name}_values", torch.cat(tables))
            own = [i for i, rank in enumerate(ranks) for _ in range(rank // 4)]
            self.register_buffer("offsets", 256 * torch.tensor(own, dtype=torch.int32))

    def _factor(self, side: str, dtype: torch.dtype, rows: Tensor | None = None) -> Tensor:
        """U or V of all tasks side by side, [rows, K] in ``dtype``; rows: only these, of any shape."""
        packed = torch.cat([getattr(self, f"task{slot}_{side}") for slot in self.own], 1)
        packed = packed if rows is None else packed[rows]
        if self.leveled:
            return decoded(packed.to(torch.int32) + self.offsets, getattr(self, f"{side}_values"), dtype)
        return decoded(packed, self.shared.bytes, dtype)

    def _scales(self, gamma: Tensor) -> Tensor:
        """gamma [R, slots] -> sigma gamma of every rank, [R, K]."""
        sigma = torch.cat([getattr(self, f"task{slot}_sigma") for slot in self.own])
        return sigma * gamma.index_select(-1, self.slot)

    def product(self, x: Tensor, y: Tensor | None, routing: Routing) -> Tensor:
        dtype = wide(x.dtype)
        shrunk = x.to(dtype) @ self._factor("v", dtype)
        scaled = shrunk * beside(shrunk, self._scales(self.shared.gamma(routing)).to(dtype))
        out = scaled @ self._factor("u", dtype).T
        return (out if y is None else y.to(dtype) + out).to(x.dtype)

    def rows(self, ids: Tensor, y: Tensor, routing: Routing) -> Tensor:
        dtype = wide(y.dtype)
        left = self._factor("u", dtype, ids.clamp(min=0))
        left = left * (ids >= 0)[..., None].to(dtype)
        scaled = left * beside(left, self._scales(self.shared.gamma(routing)).to(dtype))
        return (y.to(dtype) + scaled @ self._factor("v", dtype).T).to(y.dtype)

    def dense(self, gamma: Tensor, base: Tensor | None, dtype: torch.dtype | None = None) -> Tensor:
        dtype = base.dtype if dtype is None and base is not None else dtype or torch.float32
        u, v = (self._factor(side, wide(dtype)) for side in "uv")
        full = (u * self._scales(gamma[None])[0].to(u.dtype)) @ v.T
        return (full if base is None else base.to(full.dtype) + full).to(dtype)
