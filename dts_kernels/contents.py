"""What a bank's table points to, checked once a table: C and Triton follow no pointer that was not looked at here."""

import math
from operator import is_
from typing import Any

import torch
from torch import Tensor

from .arena import ALIGN, pieces
from .layout import PackedFactors, level_coefficients, rank_words_size, words_shape
from .planar import FIELDS, HEADER, RANK_BLOCK, planar_factors
from .reference import range_exponent

TABLE_FIELDS = 6  # u, v, sigma, levels: where in `packed` (-1: none); rank; range exponent
HELD = "_dts_contents"  # the attribute of a table that keeps what was read of it
LAYOUTS = {"disk": TABLE_FIELDS, "planar": FIELDS, "planar_levels": FIELDS}


class Contents:
    """Of one table as it is now, and the tensors it points into.

    shape: (out_features, in_features) of its tasks, None without any and for kernel words;
    factors, exponents: slot -> `PackedFactors` and range exponent (disk bytes only);  tasks: what C makes of them;
    launches: what `gpu.repeat` keeps of products with kernel words.
    """

    def __init__(self, packed: list[Tensor], table: Tensor, on_cpu: bool):
        """Nothing was read yet: `read` does that, `own` was told."""
        self.given, self.packed, self.version = packed, tuple(packed), version_of(table)
        self.factors: dict[int, PackedFactors] = {}
        self.exponents: dict[int, int] = {}
        self.shape: tuple[int, int] | None = None
        self.tasks: Any = None
        self.memory: Any = None  # that kernel words are in: it lives as long as the table that was looked at
        self.launches: dict[Any, Any] = {}
        self.known: set[tuple[str, tuple[int, ...], int]] = set()
        self.on_cpu = on_cpu

    @classmethod
    def read(cls, packed: list[Tensor], table: Tensor) -> "Contents":
        """Raises ValueError for a table that does not fit its tensors."""
        held, sizes = cls(packed, table, all(t.is_cpu for t in packed)), LAYOUTS.values()
        if table.dtype != torch.int64 or table.dim() != 2 or table.shape[1] not in sizes or not plain(table):
            raise ValueError(
                f"a bank's table must be int64 [slots, {TABLE_FIELDS} or {FIELDS}], "
                f"not {table.dtype} {list(table.shape)}"
            )
        if table.shape[1] == TABLE_FIELDS:
            held._read_disk(table)
        return held

    def __reduce__(self):
        return type(None), ()  # a copy of the table makes its own

    def __deepcopy__(self, memo):
        return None

    def of_now(self, packed: list[Tensor], table: Tensor) -> bool:
        """Whether these are the tensors that were looked at, the table unchanged since."""
        if packed is not self.given and not (len(packed) == len(self.packed) and all(map(is_, packed, self.packed))):
            return False
        return self.version is None or table._version == self.version

    def _read_disk(self, table: Tensor) -> None:
        wrong = [f"packed[{i}] is no plain dense tensor" for i, t in enumerate(self.packed) if not plain(t)]
        devices = {t.device for t in self.packed}
        if len(devices) > 1:
            wrong.append(f"packed tensors are on several devices: {sorted(map(str, devices))}")
        for slot, (*where, rank, exponent) in enumerate([] if wrong else table.tolist()):
            if where == [-1, -1, -1, -1]:
                continue
            if min(where[:3]) < 0 or where[3] < -1 or max(where) >= len(self.packed) or not -126 <= exponent <= 126:
                wrong.append(f"slot {slot} points to {where}, exponent {exponent} of {len(self.packed)} tensors")
                continue
            u, v, sigma = (self.packed[i] for i in where[:3])
            try:
                one = PackedFactors(u, v, sigma, self.packed[where[3]] if where[3] >= 0 else None)
            except ValueError as error:
                wrong.append(f"slot {slot}: {error}")
                continue
            if one.rank != rank:
                wrong.append(f"slot {slot} says rank {rank}, its sigma has {one.rank}")
            if self.shape not in (None, one.shape):
                wrong.append(f"slot {slot} is of {list(one.shape)}, others of {list(self.shape)}")
            self.factors[slot], self.exponents[slot], self.shape = one, exponent, one.shape
        if wrong:
            raise ValueError("a bank's table does not fit its tensors: " + "; ".join(wrong))

    def fit(
        self, layout: str, shape: tuple[int, int], max_rank: int, table: Tensor, device: torch.device | None
    ) -> None:
        """Raise ValueError unless this is a bank of that layout, for products of (out_features, in_features)."""
        if self.shape is not None and layout == "disk":
            if shape == self.shape and (device is None or self.packed[0].device == device):
                return
            raise ValueError(
                f"the bank's tasks are of {list(self.shape)} = [out_features, in_features] on {self.packed[0].device}, "
                f"the product is of {list(shape)} on {device}"
            )
        if LAYOUTS.get(layout) != table.shape[1]:
            raise ValueError(f"layout {layout!r} does not fit a table {list(table.shape)}; layouts are {list(LAYOUTS)}")
        if layout != "disk":
            if device is not None and any(t.device != device for t in (*self.packed, table)):
                raise ValueError(f"the bank is on {table.device}, the product on {device}")
            if (layout, shape, max_rank) not in self.known:
                self._read_planar(layout, shape, max_rank, table)
                self.known.add((layout, shape, max_rank))

    def _read_planar(self, layout: str, shape: tuple[int, int], max_rank: int, table: Tensor) -> None:
        """Kernels find a task's words, numbers and rank in the table and trust it.  Reads device memory."""
        kinds = [t.dtype for t in self.packed]
        if (
            kinds != [torch.int32, torch.float32]
            or not all(plain(t) and t.dim() == 1 and t.is_contiguous() for t in self.packed)
            or not table.is_contiguous()
        ):
            raise ValueError(
                f"a bank of kernel words needs int32 words and float32 numbers, flat, and a table, all "
                f"contiguous; not {[(str(t.dtype), list(t.shape)) for t in self.packed]}"
            )
        (m, n), wrong = shape, []
        words, scalars = ([(at, at + t.numel(), t) for at, t in pieces(anchor)] for anchor in self.packed)
        self.memory = words
        if max_rank < 0 or max_rank % RANK_BLOCK:
            wrong.append(f"max_rank must be a multiple of {RANK_BLOCK}, not {max_rank}")
        for slot, (v, u, scalar, rank) in enumerate(table.tolist()):
            if not rank:
                continue
            header = None
            if 0 < rank <= max_rank and not any(start % ALIGN for start in (u, v, scalar)):
                if _within(words, v, math.prod(words_shape(n, rank))) is not None:
                    if _within(words, u, rank_words_size(rank, m)) is not None:
                        header = _within(scalars, scalar, HEADER + rank)
            if header is None:
                wrong.append(
                    f"slot {slot} (words at {v} and {u}, numbers at {scalar}, rank {rank}) does not fit "
                    f"{sum(t.numel() for _, _, t in words)} words in {len(words)} pieces, "
                    f"{sum(t.numel() for _, _, t in scalars)} numbers and rank {max_rank} for {list(shape)}"
                )
            elif layout == "planar" and header[1:9].tolist() != 2 * level_coefficients(None):
                wrong.append(f"slot {slot} has levels: the layout is 'planar_levels'")
        if wrong:
            raise ValueError("a bank's table does not fit its tensors: " + "; ".join(wrong))


def of(packed: list[Tensor], table: Tensor) -> Contents:
    """The contents of a table, read again only when it or the tensors are others.  Raises ValueError."""
    held = getattr(table, HELD, None)
    if held is not None and held.given is packed and held.shape is not None:
        return held  # a bank's own: it makes another table
    if held is None or not held.of_now(packed, table):
        held = Contents.read(packed, table)
        setattr(table, HELD, held)
    return held


def trust(packed: list[Tensor], table: Tensor, layout: str, shape: tuple[int, int], max_rank: int, memory: Any) -> None:
    """What a bank of kernel words just wrote itself is not read back from the device."""
    known, held = (layout, tuple(shape), max_rank), getattr(table, HELD, None)
    if held is not None and held.given is packed:  # other tasks in the table that kernels have already
        held.version = version_of(table)
    else:
        held = Contents.read(packed, table)
        setattr(table, HELD, held)
    held.known, held.memory = {known}, memory


def own(
    packed: list[Tensor],
    table: Tensor,
    factors: dict[int, PackedFactors],
    exponents: dict[int, int],
    tasks: Any,
) -> None:
    """What a bank of disk bytes just wrote itself is not read back, nor made for C again.

    factors: of plain tensors on a CPU;  tasks: `cpu.tasks.Tasks` of them.
    """
    if not table.shape[0]:
        return
    held = Contents(packed, table, True)
    held.factors, held.exponents, held.tasks = factors, exponents, tasks
    held.shape = next(iter(factors.values())).shape
    setattr(table, HELD, held)


def factors_of(
    packed: list[Tensor], table: Tensor, in_features: int, out_features: int, transposed=False
) -> tuple[dict[int, PackedFactors], dict[int, int]]:
    """The inverse of a bank's table: (slot -> factors, slot -> range exponent).

    in_features, out_features: of the factors as stored, which ``transposed`` exchanges in what is returned.
    """
    held = of(packed, table)
    if table.shape[1] == TABLE_FIELDS:
        factors, exponents = held.factors, held.exponents
    else:
        factors, exponents = planar_factors(packed, table, in_features, out_features)
    if transposed:
        factors = {slot: f.transpose() for slot, f in factors.items()}
        exponents = {slot: range_exponent(f) for slot, f in factors.items()}
    return factors, exponents


def version_of(table: Tensor) -> int | None:
    """How often a tensor was changed in place; None where nobody counts."""
    return None if table.is_inference() else table._version


def _within(pieces: list[tuple[int, int, Tensor]], start: int, size: int) -> Tensor | None:
    """The elements from an offset on, or None where they are not all in one of (start, stop, tensor)."""
    return next(
        (t[start - at : start - at + size] for at, end, t in pieces if at <= start and start + size <= end), None
    )


def plain(t: Tensor) -> bool:
    return t.layout is torch.strided and not t.is_neg() and not t._is_zerotensor()
