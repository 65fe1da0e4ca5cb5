"""The ops' GPU paths: which kernels run, with which shapes and scratch.  Nothing here reads a device tensor's values.

levels: whether any task of the bank has levels (its layout is "planar_levels"), which the kernels then assume of all.
"""

from contextlib import nullcontext
from functools import cache

import torch
from torch import Tensor

from ..layout import COLUMN_BLOCK, ceil_div, round_up
from ..operands import DenseOperands, FactorOperands
from ..planar import HEADER
from . import config
from .config import Config, Device

GROUPED_ENTRIES = 1024  # up to so many rows, rows of one task are found inside the kernels


@cache
def device_properties(index: int | None) -> Device:
    """Of a CUDA device; None (the interpreter) is a small made-up one."""
    if index is None:
        return Device("interpreter", 4, (8, 0))
    properties = torch.cuda.get_device_properties(index)
    return Device(properties.name, properties.multi_processor_count, (properties.major, properties.minor))


class Launch:
    """One op's operands and row layout, and the launches of its kernels.

    x: [rows, in_features], contiguous, fp16, bf16 or fp32.  configs: kernel name -> Config, else they are chosen.
    """

    def __init__(self, x: Tensor, operands: FactorOperands, configs: dict[str, Config] | None = None):
        packed, table, slots, weights, out_features, max_rank, layout = operands
        self.x, (self.words, self.scalars), self.table = x, packed, table
        self.slots, self.weights, self.levels = slots.contiguous(), weights.contiguous(), layout == "planar_levels"
        self.rows, self.in_features = x.shape
        self.out_features, self.width = out_features, max_rank
        self.entries, self.places = slots.shape
        self.per_entry = self.rows // self.entries
        self.grouped = self.per_entry == 1 and self.places == 1 and 1 < self.entries <= GROUPED_ENTRIES
        self.device = device_properties(x.device.index if x.is_cuda else None)
        self.given = configs or {}

    def config(self, kernel: str, columns: int, contracted: int) -> Config:
        rows = self.rows if self.grouped else self.per_entry
        programs = 1 if self.grouped else self.entries
        programs *= self.places if kernel == "shrink" else 1
        dtype = str(self.x.dtype).removeprefix("torch.")
        return self.given.get(kernel) or config.choose(kernel, self.device, dtype, columns, contracted, rows, programs)

    def row_blocks(self, block_t: int) -> int:
        return self.entries if self.grouped else self.entries * ceil_div(self.per_entry, block_t)

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

    def shrink(self, pdl: bool = False) -> tuple[Tensor, int]:
        """(t, how many parts it is stored in)."""
        from .shrink import shrink

        c = self.config("shrink", self.width, self.in_features)
        dtype = self.x.dtype if c.split == 1 else torch.float32
        t = torch.empty(c.split, self.places, self.rows, self.width, dtype=dtype, device=self.x.device)
        shrink[(ceil_div(self.width, c.block_n), self.row_blocks(c.block_t), self.places * c.split)](
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
            **registers(self.x.dtype, self.levels),
        )
        return t, c.split

    def expand(self, t: Tensor, parts: int, y: Tensor | None) -> Tensor:
        from .expand import expand

        c = self.config("expand", self.out_features, self.width)
        out = self.x.new_empty(self.rows, self.out_features)
        expand[(ceil_div(self.out_features, c.block_n), self.row_blocks(c.block_t))](
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
        )
        return out

    def base_expand(self, weight: Tensor, bias: Tensor | None) -> Tensor:
        from .base_expand import base_expand

        c = self.config("base_expand", self.out_features, self.in_features)
        t, parts = self.shrink(c.pdl)
        out = self.x.new_empty(self.rows, self.out_features)
        base_expand[(ceil_div(self.out_features, c.block_n), self.row_blocks(c.block_t))](
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


def registers(dtype: torch.dtype, levels: bool) -> dict:
    """Launch options of shrink: without a limit ptxas aims at 96 registers and spills (sm_90, fp16)."""
    return {} if dtype == torch.float32 or levels else {"maxnreg": 128}


def _on(tensor: Tensor):
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def _flat(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1]).contiguous()


def delta_linear(x: Tensor, y: Tensor | None, operands: FactorOperands, transposed: bool) -> Tensor:
    """Not transposed."""
    with _on(x):
        launch = Launch(_flat(x), operands)
        out = launch.expand(*launch.shrink(), None if y is None else _flat(y))
    return out.view(*x.shape[:-1], operands.out_features)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, operands: FactorOperands) -> Tensor:
    with _on(x):
        launch = Launch(_flat(x), operands)
        if launch.per_entry > 16 or x.dtype == torch.float32:  # the library's product is the faster one from here
            y = torch.nn.functional.linear(launch.x, weight, bias)
            out = launch.expand(*launch.shrink(), y)
        else:
            out = launch.base_expand(weight.contiguous(), bias)
    return out.view(*x.shape[:-1], operands.out_features)


def dequantise(packed, table, slots, place: int, size: int, columns: int, u: bool, dtype, levels: bool) -> Tensor:
    """U [size = ranks, columns = out_features] or V^T [size = in_features, columns = ranks] of the task slots[place].

    slots: int32, flat.  Values of the codes without sigma; zeros beyond the task's rank.
    """
    from .dequantise import dequantise

    words, scalars = packed
    out = torch.empty(size, columns, dtype=dtype, device=words.device)
    dequantise[(ceil_div(size, 128), ceil_div(columns, 64))](
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
    slot = slots[place].long()
    known = (slot >= 0) & (slot < table.shape[0])
    start, rank = table[slot.clamp(0, table.shape[0] - 1)][2:].unbind()
    rank = rank * known
    index = torch.arange(max_rank, device=slots.device)
    sigma = scalars[(start + HEADER + index).clamp(max=scalars.shape[0] - 1)]
    return torch.where(index < rank, sigma, 0.0), torch.where(rank > 0, scalars[start], 0.0)


def _wide_mm(a: Tensor, b: Tensor) -> Tensor:
    """a b in float32, whatever 16-bit dtype they have."""
    if a.dtype == torch.float32:
        return a @ b
    return torch.mm(a, b, out_dtype=torch.float32) if a.is_cuda else a.float() @ b.float()


def dequantised_delta_linear(x: Tensor, y: Tensor | None, operands: FactorOperands, transposed: bool) -> Tensor:
    """Two library products an entry and place; the same rounding as the kernels.  Transposed: gradients for x."""
    packed, table, slots, weights, out_features, max_rank, layout = operands
    levels = layout == "planar_levels"
    rows = _flat(x)
    entries, places = slots.shape
    sizes = (out_features, x.shape[-1]) if transposed else (x.shape[-1], out_features)
    out = torch.zeros(rows.shape[0], out_features, dtype=torch.float32, device=x.device)
    flat, gammas = slots.reshape(-1), weights.reshape(-1)
    with _on(x):
        for at in range(entries * places):
            block = slice(at // places * (rows.shape[0] // entries), (at // places + 1) * (rows.shape[0] // entries))
            dtype = torch.float32 if levels else x.dtype
            v = dequantise(packed, table, flat, at, sizes[0], max_rank, False, dtype, levels)
            u = dequantise(packed, table, flat, at, max_rank, sizes[1], True, dtype, levels)
            first, second = (u.T, v.T) if transposed else (v, u)
            sigma, scale = _scalars_of(packed, table, flat, at, max_rank)
            t = (_wide_mm(rows[block].to(dtype), first) * sigma * gammas[at]).to(x.dtype)
            out[block] += _wide_mm(t.to(dtype), second) * scale
    out = out.view(*x.shape[:-1], out_features)
    return (out if y is None else out + y).to(x.dtype)


def dequantised_linear(x: Tensor, weight: Tensor, bias: Tensor | None, operands: FactorOperands) -> Tensor:
    y = torch.nn.functional.linear(x, weight, bias)
    return dequantised_delta_linear(x, y, operands, False)


def reconstruct(operands: DenseOperands, dtype: torch.dtype) -> Tensor:
    from .reconstruct import reconstruct

    packed, table, gamma, base, out_features, in_features, _, layout = operands
    levels = layout == "planar_levels"
    words, scalars = packed
    slots = torch.arange(table.shape[0], dtype=torch.int32, device=words.device)
    gamma = gamma[: table.shape[0]].to(words.device, torch.float32).contiguous()  # a place a slot, no more
    out = torch.empty(out_features, in_features, dtype=dtype, device=words.device)
    with _on(words):
        reconstruct[(ceil_div(in_features, 128), ceil_div(out_features, 64))](
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
