"""One tensor of an adapter: what the adapter knows about one tensor of the fine-tune.

An adapter has an `Entry` only for tensors that differ from the base's; a fine-tuned tensor without an entry is the
base's, unchanged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dts.adapter.errors import AdapterError
from dts.adapter.text import dtype_name
from dts.codec.errors import Undecodable
from dts.codec.exact import Patch, decode, digest
from dts.sums import BLOCK

if TYPE_CHECKING:
    from dts.adapter.grid import Grid
    from dts.codec.factors import Factors


ENTRY_KINDS = ("factors", "experts", "delta", "value", "exact", "tied")


@dataclass
class Entry:
    """What an adapter stores of one tensor of the fine-tune.

    kind      stored
    factors   ``factors``: one compressed matrix.  Its shape is the base tensor's, flattened to 2-D from the second
              dimension on (convolutions).  ``None`` if only ``added_rows`` are stored (the shared rows are the base's)
    experts   ``factors``: a list, one a matrix of a base tensor [E, m, n]; ``None`` for an expert left as it is
    delta     ``tensor``: finetuned - base (biases, norms).  Raw, base + tensor is the fine-tune's value exactly
    value     ``tensor``: the fine-tune's whole value, either because only the fine-tune has it (``task_only``) or
              because a difference would not give it back exactly (integers, booleans, coarse dtypes)
    exact     ``patch``: what makes it of the base's bit for bit (`dts.codec.exact`), None if only rows were added;
              ``tensor`` if it is ``task_only``.  ``result``: 16 hex digits over its bytes, which `apply` compares
    tied      nothing: it is the tensor named ``tied_to``

    name: the fine-tune's name;  base_name: the base's (None if ``task_only``);  shape, dtype: the fine-tune's.
    added_rows: [rows beyond the base's, ...] of an enlarged vocabulary, whole values in the fine-tune's dtype.
    norm: ||finetuned - base||_F;  squared_error: ||delta - delta_hat||^2 / ||delta||^2 as measured when compressed,
    None where it is not known.
    A delta or a value may be rounded: ``grid`` has it instead of ``tensor``.  Before version 5 a delta could be int8
    with one ``scale``: the difference is scale * tensor, wrong by at most scale / 2 an element.
    """

    name: str
    base_name: str | None
    shape: tuple[int, ...]
    kind: str
    dtype: torch.dtype = torch.float32
    factors: Factors | list[Factors | None] | None = None
    tensor: Tensor | None = None
    added_rows: Tensor | None = None
    task_only: bool = False
    tied_to: str | None = None
    norm: float = 0.0
    squared_error: float | None = 0.0
    scale: float | None = None
    grid: Grid | None = None
    patch: Patch | None = None
    result: str | None = None

    @property
    def is_rounded(self) -> bool:
        """Is it a delta or a value that is not exactly what it was?"""
        return self.scale is not None or self.grid is not None

    @property
    def base_shape(self) -> tuple[int, ...]:
        """Shape of the base's tensor: ``shape`` without the added rows."""
        added = 0 if self.added_rows is None else self.added_rows.shape[0]
        return (self.shape[0] - added, *self.shape[1:]) if added else self.shape

    @property
    def factorised(self) -> bool:
        """Is it stored as matrices, rather than whole?"""
        return self.kind in ("factors", "experts")

    @property
    def matrices(self) -> list[Factors | None]:
        """The factors of every matrix: one, or one an expert; none at all if it is not factorised."""
        if not self.factorised:
            return []
        return self.factors if isinstance(self.factors, list) else [self.factors]

    @property
    def places(self) -> list[str]:
        """What the names of the tensors of each of `matrices` start with."""
        if self.kind == "experts":
            return [f"{self.name}[{expert}]" for expert in range(len(self.matrices))]
        return [self.name] * len(self.matrices)

    def with_matrices(self, matrices: Sequence[Factors | None]) -> Entry:
        """The same with other factors, as many as `matrices`."""
        return replace(self, factors=list(matrices) if self.kind == "experts" else matrices[0])

    @property
    def rank(self) -> int:
        """Kept components (the most of any expert); 0 for what is not factorised."""
        return max((factors.rank for factors in self.matrices if factors is not None), default=0)

    def delta(self, base: Tensor | None = None, dtype: torch.dtype = torch.float32) -> Tensor:
        """The reconstructed difference on the base's shape, dense.

        base: the base's tensor; only kinds "value" and "exact" need it.  Not defined for "tied" and ``task_only``
        entries.
        """
        if self.kind == "tied" or self.task_only:
            owner = self.tied_to or "only the fine-tune"
            raise ValueError(f"{self.name} has no difference of its own: it is {owner}'s")
        if self.kind in ("value", "exact"):
            if base is None:
                how = "a whole value" if self.kind == "value" else "a patch"
                raise ValueError(f"{self.name} is stored as {how}: its difference needs the base's tensor")
            value = self.numbers(dtype) if self.kind == "value" else self.patched(base)
            value = value[: base.shape[0]] if base.dim() else value
            return value.to(base.device, dtype) - base.to(dtype)
        if self.kind == "delta":
            return self.numbers(dtype)
        if self.kind == "experts":
            matrix = self.base_shape[1:]
            return torch.stack(
                [torch.zeros(matrix, dtype=dtype) if f is None else f.reconstruct(dtype=dtype) for f in self.matrices]
            )
        (factors,) = self.matrices
        if factors is None:
            return torch.zeros(self.base_shape, dtype=dtype)
        return factors.reconstruct(dtype=dtype).reshape(self.base_shape)

    def numbers(self, dtype: torch.dtype) -> Tensor:
        """What is stored of a delta or a value, as numbers of this dtype."""
        if self.grid is not None:
            return self.grid.values(dtype)
        return self.whole.to(dtype) if self.scale is None else self.whole.to(dtype) * self.scale

    @property
    def whole(self) -> Tensor:
        """The tensor of a delta or a value that has no grid."""
        if self.tensor is None:
            raise ValueError(f"{self.name}: its {self.kind} is missing")
        return self.tensor

    def apply(self, base: Tensor | None) -> Tensor:
        """The fine-tune's tensor: base + delta in fp32, rounded once to the fine-tune's dtype.

        base: the base's tensor, or None if ``task_only``.
        """
        if self.kind == "value":
            return (
                self.whole.to(self.dtype) if self.grid is None else rounded(self.grid.values(), self.dtype, self.name)
            )
        if self.kind == "exact" and self.task_only:
            return self.whole
        if base is None:
            raise ValueError(f"{self.name} is stored as a difference: its value needs the base's tensor")
        if self.kind == "exact":
            return self.patched(base)
        wide = torch.float64 if base.dtype == torch.float64 else torch.float32
        delta, value = self.delta(dtype=wide).to(base.device), base.new_empty(base.shape, dtype=self.dtype)
        if delta.shape != base.shape:
            raise AdapterError(f"{self.name}: the base's has shape {list(base.shape)}, not {list(delta.shape)}")
        flat, parts = value.view(-1), (x.reshape(-1).split(BLOCK) for x in (base.detach(), delta))
        for out, here, change in zip(flat.split(BLOCK), *parts, strict=True):  # only blocks are ever wide
            here = here.to(wide)
            out.copy_(rounded(here + change, self.dtype, self.name, here, change))
        if self.added_rows is not None:
            value = torch.cat([value, self.added_rows.to(value.device, self.dtype)])
        return value

    def patched(self, base: Tensor) -> Tensor:
        """The fine-tune's tensor of kind "exact", added rows included, in memory of its own on the base's device.

        Raises AdapterError for a base that is not, bit for bit, the one it was made for.
        """
        if tuple(base.shape) != self.base_shape:
            raise AdapterError(f"{self.name}: the base's has shape {list(base.shape)}, not {list(self.base_shape)}")
        shared = base.detach().to(self.dtype)
        try:
            value = shared.clone() if self.patch is None else decode(self.name, self.patch, shared)
        except Undecodable as error:
            raise AdapterError(str(error)) from None
        if self.added_rows is not None:
            value = torch.cat([value, self.added_rows.to(value.device)])
        if digest(value) != self.result:
            raise AdapterError(
                f"{self.name} does not come out as the fine-tune's, bit for bit: the base's tensor is another one, or "
                f"was read in another dtype than {dtype_name(self.dtype)}"
            )
        return value.to(base.device)


NEAR = 2.0  # times the largest number of a dtype: how far a difference that is not exact may lead beyond it


def rounded(value: Tensor, dtype: torch.dtype, name: str, *given: Tensor) -> Tensor:
    """``value`` in the dtype; elements a little beyond it, as rounding leads there, are its largest number.

    Raises AdapterError for elements far beyond it though what they are ``given`` by is finite.
    """
    narrow = value.to(dtype)
    if not dtype.is_floating_point or not value.numel() or not value.is_floating_point():
        return narrow
    least, most = torch.aminmax(value)
    largest = torch.finfo(dtype).max
    if -largest <= least.item() and most.item() <= largest:
        return narrow
    finite = torch.stack([tensor.isfinite() for tensor in given or (value,)]).all(0)
    beyond = finite & ~narrow.float().isfinite()
    near = beyond & (value.abs() <= NEAR * largest)
    narrow = torch.where(near, torch.full_like(narrow, largest).copysign(narrow), narrow)  # the fine-tune's was finite
    if far := int((beyond & ~near).sum()):
        raise AdapterError(
            f"{name}: {far} elements are too large for {dtype_name(dtype)}: the adapter "
            "does not belong to this base, or is damaged"
        )
    return narrow
