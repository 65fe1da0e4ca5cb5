"""The ops' GPU paths: which kernels run, with which shapes and scratch.  Nothing here reads a device tensor's values.

levels: whether any task of the bank has levels (`planar.py`), which the kernels then assume of all.
"""

from contextlib import nullcontext
from functools import cache

import torch
from torch import Tensor

from ..layout import COLUMN_BLOCK, round_up
from ..planar import HEADER
from . import config
from .config import Config, Device

COMBINED = 1024  # elements of t that a program adds up
GROUPED_ENTRIES = 1024  # up to so many rows, rows of one task are found inside the kernels


@cache
def device_properties(index: int | None) -> Device:
    """Of a CUDA device; None (the interpreter) is a small made-up one."""
    if index is None:
        return Device("interpreter", 4, (8, 0))
    properties = torch.cuda.get_device_properties(index)
    return Device(properties.name, properties.multi_processor_count, (properties.major, properties.minor))


@cache
def side_stream(index: int | None) -> torch.cuda.Stream:
    """The stream of a device that shrink is captured on."""
    return torch.cuda.Stream(index)


class Launch:
    """One op's operands and row layout, and the launches of its kernels.

    x: [rows, in_features], contiguous, fp16, bf16 or fp32.  configs: kernel name -> Config, else they are chosen.
    """

    def __init__(
        self,
        x,
        packed,
        table,
        slots,
        weights,
        out_features,
        max_rank,
        levels: bool,
        configs: dict[str, Config] | None = None,
    ):
        self.x, (self.words, self.scalars), self.table = x, packed, table
        self.slots, self.weights, self.levels = slots.contiguous(), weights.contiguous(), levels
        self.rows, self.in_features, self.out_features, self.width = *x.shape, out_features, max_rank
        self.entries, self.places = slots.shape
        self.per_entry = self.rows // self.entries
        self.grouped = self.per_entry == 1 and self.places == 1 and 1 < self.entries <= GROUPED_ENTRIES
        self.device = device_properties(x.device.index if x.is_cuda else None)
        self.given = configs or {}

    @property
    def dtype(self) -> str:
        return str(self.x.dtype).removeprefix("torch.")

    def config(self, kernel: str, columns: int, contracted: int, parts: int = 1) -> Config:
        given = self.given.get(kernel)
        if given is not None:
            return given
        blocks = self.entries * (self.places if kernel == "shrink" else 1)
        chosen = config.choose(kernel, self.device, self.dtype, columns, contracted, self.per_entry, blocks, parts)
        return config.for_levels(chosen) if self.levels else chosen

    def row_blocks(self, block_t: int) -> int:
        return self.entries if self.grouped else self.entries * -(-self.per_entry // block_t)

    def asm(self, c: Config) -> bool:
        return c.asm and not self.levels and self.x.is_cuda  # the interpreter runs no assembly

    @property
    def common(self) -> dict:
        return {
            "GROUPED": self.grouped,
            "LEVELS": self.levels,
            "ENTRIES": 1 << max(self.entries - 1, 0).bit_length() if self.grouped else 1,
        }

    @property
    def sizes(self) -> tuple[int, ...]:
        return self.table.shape[0], self.rows, self.entries, self.per_entry, self.places

    def scratch(self, parts: int) -> Tensor:
        """Room for t in so many parts."""
        dtype = self.x.dtype if parts == 1 else torch.float32
        return torch.empty(parts, self.places, self.rows, self.width, dtype=dtype, device=self.x.device)

    def shrink(self, pdl: bool = False, t: Tensor | None = None) -> tuple[Tensor, int]:
        """(t, how many parts it is stored in); t: `scratch`, made here if None."""
        from .shrink import shrink

        c = self.config("shrink", self.width, self.in_features)
        t = self.scratch(c.split) if t is None else t
        shrink[(-(-self.width // c.block_n), self.row_blocks(c.block_t), self.places * c.split)](
            self.x,
            self.words,
            self.scalars,
            self.table,
            self.slots,
            self.weights,
            t,
            *self.sizes,
            self.in_features,
            self.width,
            BLOCK_T=c.block_t,
            BLOCK_N=c.block_n,
            SPLIT=c.split,
            PDL=pdl,
            ASM=self.asm(c),
            **self.common,
            num_warps=c.warps,
            num_stages=c.stages,
            **registers(self.x.dtype, self.levels, c.warps),
        )
        return t, c.split

    def combine(self, parts: Tensor, t: Tensor) -> Tensor:
        """t = the sum of its parts, once: each program of expand would read them all."""
        from .shrink import combine_parts

        combine_parts[(-(-t.numel() // COMBINED),)](parts, t, t.numel(), PARTS=parts.shape[0], BLOCK=COMBINED)
        return t

    def expand(self, t: Tensor, parts: int, y: Tensor | None) -> Tensor:
        from .expand import expand

        c = self.config("expand", self.out_features, self.width, parts)
        out = self.x.new_empty(self.rows, self.out_features)
        expand[(-(-self.out_features // c.block_n), self.row_blocks(c.block_t))](
            t,
            self.words,
            self.scalars,
            self.table,
            self.slots,
            out if y is None else y,
            out,
            *self.sizes,
            self.width,
            self.out_features,
            round_up(self.out_features, COLUMN_BLOCK),
            BLOCK_T=c.block_t,
            BLOCK_N=c.block_n,
            SPLIT=parts,
            ADD=y is not None,
            ASM=self.asm(c),
            **self.common,
            num_warps=c.warps,
            num_stages=c.stages,
            **registers(self.x.dtype, self.levels, c.warps),
        )
        return out

    def linear(self, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The library's product of all rows, so that the base is read once whatever tasks they use, and the delta.

        In a CUDA graph shrink runs beside it, on a stream of its own that is forked and joined here, and adds up its
        parts there.  *Measured* on an H100: shrink beside it saves up to .25 of the base's time, expand takes 3 to 6 us
        for whole t and 4 to 10 us for parts.  Eagerly the host would wait for itself.
        """
        if not (self.x.is_cuda and torch.cuda.is_current_stream_capturing()):
            y = torch.nn.functional.linear(self.x, weight, bias)
            return self.expand(*self.shrink(), y)
        split = self.config("shrink", self.width, self.in_features).split
        t, whole = self.scratch(split), self.scratch(1) if split > 1 else None
        here, side = torch.cuda.current_stream(), side_stream(self.x.device.index)
        side.wait_stream(here)
        with torch.cuda.stream(side):
            self.shrink(t=t)
            t = t if whole is None else self.combine(t, whole)
        y = torch.nn.functional.linear(self.x, weight, bias)
        here.wait_stream(side)
        return self.expand(t, 1, y)

    def base_expand(self, weight: Tensor, bias: Tensor | None) -> Tensor:
        from .base_expand import base_expand

        c = self.config("base_expand", self.out_features, self.in_features)
        t, parts = self.shrink(c.pdl)
        out = self.x.new_empty(self.rows, self.out_features)
        base_expand[(-(-self.out_features // c.block_n), self.row_blocks(c.block_t))](
            self.x,
            weight,
            weight if bias is None else bias,
            t,
            self.words,
            self.scalars,
            self.table,
            self.slots,
            out,
            *self.sizes,
            self.width,
            self.in_features,
            self.out_features,
            round_up(self.out_features, COLUMN_BLOCK),
            BLOCK_T=c.block_t,
            BLOCK_N=c.block_n,
            BLOCK_K=c.block_k,
            SPLIT=parts,
            BIAS=bias is not None,
            PDL=c.pdl,
            ASM=self.asm(c),
            **self.common,
            num_warps=c.warps,
            num_stages=c.stages,
            **({"launch_pdl": True} if c.pdl else {}),
        )
        return out


def registers(dtype: torch.dtype, levels: bool, warps: int) -> dict:
    """Launch options of shrink and expand: without a limit ptxas aims at 96 registers and spills (sm_90, fp16)."""
    return {} if dtype == torch.float32 or levels or warps < 4 else {"maxnreg": 128}


def _on(tensor: Tensor):
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def _flat(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1]).contiguous()


def delta_linear(x, y, packed, table, slots, weights, out_features, max_rank, transposed, levels=False):
    with _on(x):
        launch = Launch(_flat(x), packed, table, slots, weights, out_features, max_rank, levels)
        out = launch.expand(*launch.shrink(), None if y is None else _flat(y))
    return out.view(*x.shape[:-1], out_features)


def linear(x, weight, bias, packed, table, slots, weights, out_features, max_rank, levels=False):
    with _on(x):
        launch = Launch(_flat(x), packed, table, slots, weights, out_features, max_rank, levels)
        if config.fused(launch.device, launch.dtype, launch.per_entry, launch.entries * launch.places, max_rank):
            out = launch.base_expand(weight.contiguous(), bias)
        else:
            out = launch.linear(weight, bias)
    return out.view(*x.shape[:-1], out_features)


def dequantise(packed, table, slots, place: int, size: int, columns: int, u: bool, dtype, levels: bool) -> Tensor:
    """U [size = ranks, columns = out_features] or V^T [size = in_features, columns = ranks] of the task slots[place].

    slots: int32, flat.  Values of the codes without sigma; zeros beyond the task's rank.
    """
    from .dequantise import dequantise

    words, scalars = packed
    out = torch.empty(size, columns, dtype=dtype, device=words.device)
    dequantise[(-(-size // 128), -(-columns // 64))](
        words,
        scalars,
        table,
        slots,
        place,
        out,
        table.shape[0],
        size,
        round_up(columns, COLUMN_BLOCK),
        columns,
        U=u,
        BLOCK_N=64,
        LEVELS=levels,
        num_warps=8,
    )
    return out


def _scalars_of(packed, table, slots, place: int, max_rank: int) -> tuple[Tensor, Tensor]:
    """(sigma 2^e [max_rank], 2^-e []) of the task slots[place], gathered on the device."""
    words, scalars = packed
    slot = slots[place : place + 1].long()  # one-dimensional: an index without a dimension is read on the host
    known = (slot >= 0) & (slot < table.shape[0])
    row = table.index_select(0, slot.clamp(0, table.shape[0] - 1))
    start, rank = row[:, 2], row[:, 3] * known
    index = torch.arange(max_rank, device=slots.device)
    sigma = scalars.index_select(0, (start + HEADER + index).clamp(max=scalars.shape[0] - 1))
    scale = torch.where(rank > 0, scalars.index_select(0, start), 0.0)
    return torch.where(index < rank, sigma, 0.0), scale[0]


def _wide_mm(a: Tensor, b: Tensor) -> Tensor:
    """a b in float32, whatever 16-bit dtype they have."""
    if a.dtype == torch.float32:
        return a @ b
    return torch.mm(a, b, out_dtype=torch.float32) if a.is_cuda else a.float() @ b.float()


def dequantised_delta_linear(x, y, packed, table, slots, weights, out_features, max_rank, transposed, levels=False):
    """Two library products an entry and place; the same rounding as the kernels.  Transposed: gradients for x.

    Nothing in it waits for the device, so a CUDA graph can capture it.
    """
    total = None if y is None else _flat(y)
    single = slots.shape[1] == 1 and not levels and x.dtype == torch.bfloat16
    add = _add_in_place if single else _add_widened
    with _on(x):
        total = add(_flat(x), total, packed, table, slots, weights, out_features, max_rank, transposed, levels)
    return total.view(*x.shape[:-1], out_features)


def dequantised_linear(x, weight, bias, packed, table, slots, weights, out_features, max_rank, levels=False):
    y = torch.nn.functional.linear(x, weight, bias)
    return dequantised_delta_linear(x, y, packed, table, slots, weights, out_features, max_rank, False, levels)


def _entries(rows, packed, table, slots, weights, out_features, max_rank, transposed, levels):
    """For every entry and place: (its rows, t in x's dtype, the second factor, the scale of their product)."""
    entries, places = slots.shape
    sizes = (out_features, rows.shape[1]) if transposed else (rows.shape[1], out_features)
    flat, gammas = slots.reshape(-1), weights.reshape(-1)
    dtype = torch.float32 if levels else rows.dtype
    each = rows.shape[0] // entries
    for at in range(entries * places):
        block = slice(at // places * each, (at // places + 1) * each)
        v = dequantise(packed, table, flat, at, sizes[0], max_rank, False, dtype, levels)
        u = dequantise(packed, table, flat, at, max_rank, sizes[1], True, dtype, levels)
        first, second = (u.T, v.T) if transposed else (v, u)
        sigma, scale = _scalars_of(packed, table, flat, at, max_rank)
        t = _wide_mm(rows[block].to(dtype), first).mul_(sigma * gammas[at]).to(rows.dtype)
        yield block, t, second, scale


def _add_in_place(rows, y, packed, table, slots, weights, out_features, *rest):
    """One place in bfloat16: a product that adds to y and rounds once.  The scale, a power of two, is exact in t."""
    out = rows.new_empty(rows.shape[0], out_features) if y is None else y.clone()
    for block, t, second, scale in _entries(rows, packed, table, slots, weights, out_features, *rest):
        t.mul_(scale)
        torch.mm(t, second, out=out[block]) if y is None else out[block].addmm_(t, second)
    return out


def _add_widened(rows, y, packed, table, slots, weights, out_features, *rest):
    """In float32, rounded at the end."""
    out = torch.zeros(rows.shape[0], out_features, dtype=torch.float32, device=rows.device)
    for block, t, second, scale in _entries(rows, packed, table, slots, weights, out_features, *rest):
        out[block] += _wide_mm(t.to(second.dtype), second) * scale
    return (out if y is None else out + y).to(rows.dtype)


def reconstruct(packed, table, gamma, base, out_features, in_features, max_rank, dtype, levels=False):
    from .reconstruct import reconstruct

    words, scalars = packed
    slots = torch.arange(table.shape[0], dtype=torch.int32, device=words.device)
    gamma = gamma.to(words.device, torch.float32).contiguous()
    out = torch.empty(out_features, in_features, dtype=dtype, device=words.device)
    with _on(words):
        reconstruct[(-(-in_features // 128), -(-out_features // 64))](
            words,
            scalars,
            table,
            slots,
            gamma,
            out if base is None else base.contiguous(),
            out,
            table.shape[0],
            gamma.shape[0],
            in_features,
            out_features,
            round_up(out_features, COLUMN_BLOCK),
            BLOCK_M=64,
            LEVELS=levels,
            ADD=base is not None,
            D=_dot_dtype(torch.float32 if levels else dtype),
            PRECISION="ieee" if dtype == torch.float32 else "tf32",
            num_warps=8,
            num_stages=1,
        )
    return out


def _dot_dtype(dtype: torch.dtype):
    import triton.language as tl

    return {torch.float16: tl.float16, torch.bfloat16: tl.bfloat16, torch.float32: tl.float32}[dtype]
