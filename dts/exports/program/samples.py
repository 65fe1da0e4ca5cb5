"""The bank of samples of plain PyTorch: a dense matrix in each call."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from dts.exports.program.banks import Shaped
from dts.exports.program.shared import Shared, decoded, wide
from dts.nn.routing import beside
from dts_kernels import Routing, Samples
from dts_kernels.samples import ALL, columns


class PlainSamples(Shaped):
    """Samples of all tasks of an [out_features, in_features] matrix, made dense in each call.

    samples: slot -> `Samples` of the matrix as stored;  transposed: that is [in_features, out_features].
    Where the elements are follows from a seed; a program has the turn of each block of its rows instead, 1 or 2 bytes
    for a stride's rows, and of a thinned sample the groups of columns that have an element there.
    """

    def __init__(self, samples: Mapping[int, tuple[Samples, ...]], transposed: bool, shared: Shared):
        super().__init__()
        self.shared = shared
        self.own, self.transposed = sorted(slot for slot, found in samples.items() if found), transposed
        self.pieces: list[tuple[int, str, int]] = []  # slot, name, stride
        self.widths: dict[str, int] = {}  # columns of all groups that a sample's elements are in
        for slot in self.own:
            for number, one in enumerate(samples[slot]):
                name = f"task{slot}_samples{number or ''}"
                self.pieces.append((slot, name, one.stride))
                self.register_buffer(f"{name}_codes", one.codes.clone())
                self.register_buffer(f"{name}_scale", torch.tensor(one.scale, dtype=torch.float32))
                first = torch.arange(0, max(one.shape[0], 1), one.stride)
                at = columns(one.shape, one.stride, one.seed, rows=first, share=one.share)
                turns, (kept, window) = at % one.stride, one.share
                self.register_buffer(f"{name}_turns", turns.to(torch.uint8 if one.stride <= 256 else torch.int16))
                self.widths[name] = one.elements // kept * window * one.stride
                if one.share != ALL:
                    self.register_buffer(f"{name}_groups", (at // one.stride).to(torch.int32))
        self.shape = samples[self.own[0]][0].shape
        self.out_features, self.in_features = self.shape[::-1] if transposed else self.shape

    def _matrix(self, piece: tuple[int, str, int], dtype: torch.dtype, rows: Tensor | None = None) -> Tensor:
        """A sample as a dense matrix [m, n], or some of its rows [..., n]."""
        _, name, stride = piece
        codes, turns = getattr(self, f"{name}_codes"), getattr(self, f"{name}_turns")
        rows = torch.arange(self.shape[0], device=codes.device) if rows is None else rows
        groups = turns.shape[1]
        values = decoded(codes[rows], self.shared.bytes, dtype)[..., :groups] * getattr(self, f"{name}_scale").to(dtype)
        block = torch.div(rows, stride, rounding_mode="floor")
        at = (rows[..., None] + turns[block].to(torch.int64)) % stride
        if (of := getattr(self, f"{name}_groups", None)) is None:
            at = at + torch.arange(0, groups * stride, stride, device=codes.device)
        else:
            at = at + of[block].to(torch.int64) * stride
        full = torch.zeros(*rows.shape, self.widths[name], dtype=dtype, device=codes.device)
        return full.scatter(-1, at, values)[..., : self.shape[1]]

    def product(self, x: Tensor, y: Tensor | None, routing: Routing) -> Tensor:
        dtype = wide(x.dtype)
        out = x.new_zeros(*x.shape[:-1], self.out_features, dtype=dtype) if y is None else y.to(dtype)
        gamma = self.shared.gamma(routing).to(dtype)
        if routing.slots.shape[0] == 1:
            full = self._sum(gamma[0], dtype)
            return (out + x.to(dtype) @ (full if self.transposed else full.T)).to(x.dtype)
        for piece in self.pieces:
            full = self._matrix(piece, dtype)
            part = x.to(dtype) @ (full if self.transposed else full.T)
            out = out + part * beside(part, gamma[:, piece[0], None])
        return out.to(x.dtype)

    def _sum(self, gamma: Tensor, dtype: torch.dtype) -> Tensor:
        """The samples of one mixture together, as stored; gamma: [slots]."""
        parts = [self._matrix(piece, dtype) * gamma[piece[0]] for piece in self.pieces]
        total = parts[0]
        for part in parts[1:]:
            total = total + part
        return total

    def rows(self, ids: Tensor, y: Tensor, routing: Routing) -> Tensor:
        dtype = wide(y.dtype)
        gamma, own = self.shared.gamma(routing).to(dtype), (ids >= 0)[..., None].to(dtype)
        out = y.to(dtype)
        for piece in self.pieces:
            part = self._matrix(piece, dtype, ids.clamp(min=0)) * own
            out = out + part * beside(part, gamma[:, piece[0], None])
        return out.to(y.dtype)

    def dense(self, gamma: Tensor, base: Tensor | None, dtype: torch.dtype | None = None) -> Tensor:
        dtype = base.dtype if dtype is None and base is not None else dtype or torch.float32
        full = self._sum(gamma.to(wide(dtype)), wide(dtype))
        full = full.T if self.transposed else full
        return (full if base is None else base.to(full.dtype) + full).to(dtype)
