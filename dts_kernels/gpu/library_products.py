"""Products of many rows with factors that were dequantised for the library: two large products instead of a packed one.

Nothing here waits for the device, so a CUDA graph can capture it.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from ..layout import COLUMN_BLOCK, ceil_div, round_up
from ..operands import FactorOperands
from .device import on_device


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
    """(sigma 2^e [max_rank], 2^-e []) of the task slots[place], read on the device."""
    from .dequantise import task_numbers

    scalars = packed[1]
    sigma, scale = scalars.new_empty(max_rank), scalars.new_empty(1)
    task_numbers[(ceil_div(max_rank, 1024),)](
        scalars, table, slots, place, sigma, scale, table.shape[0], max_rank, BLOCK=1024
    )
    return sigma, scale[0]


def wide_mm(a: Tensor, b: Tensor) -> Tensor:
    """a b in float32, whatever 16-bit dtype they have."""
    if a.dtype == torch.float32:
        return a @ b
    return torch.mm(a, b, out_dtype=torch.float32) if a.is_cuda else a.float() @ b.float()


def delta_linear(x: Tensor, y: Tensor | None, operands: FactorOperands, transposed: bool) -> Tensor:
    """Two library products an entry and place; the same rounding as the kernels.  Transposed: gradients for x."""
    single = operands.slots.shape[1] == 1 and operands.layout == "planar" and x.dtype == torch.bfloat16
    add = _add_in_place if single else _add_widened
    before = None if y is None else y.reshape(-1, operands.out_features).contiguous()
    with on_device(x):
        out = add(x.reshape(-1, x.shape[-1]).contiguous(), before, operands, transposed)
    return out.view(*x.shape[:-1], operands.out_features)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, operands: FactorOperands) -> Tensor:
    return delta_linear(x, torch.nn.functional.linear(x, weight, bias), operands, False)


def _entries(
    rows: Tensor, operands: FactorOperands, transposed: bool
) -> Iterator[tuple[slice, Tensor, Tensor, Tensor]]:
    """For every entry and place: (its rows, t in x's dtype, the second factor, the scale of their product)."""
    packed, table, slots, weights, out_features, max_rank, layout = operands
    levels = layout == "planar_levels"
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
        t = wide_mm(rows[block].to(dtype), first).mul_(sigma * gammas[at]).to(rows.dtype)
        yield block, t, second, scale


def _add_in_place(rows: Tensor, y: Tensor | None, operands: FactorOperands, transposed: bool) -> Tensor:
    """One place in bfloat16: a product that adds to y and rounds once.  The scale, a power of two, is exact in t."""
    out = rows.new_empty(rows.shape[0], operands.out_features) if y is None else y.clone()
    for block, t, second, scale in _entries(rows, operands, transposed):
        t.mul_(scale)
        if y is None:
            torch.mm(t, second, out=out[block])
        else:
            out[block].addmm_(t, second)
    return out


def _add_widened(rows: Tensor, y: Tensor | None, operands: FactorOperands, transposed: bool) -> Tensor:
    """In float32, rounded at the end."""
    out = torch.zeros(rows.shape[0], operands.out_features, dtype=torch.float32, device=rows.device)
    for block, t, second, scale in _entries(rows, operands, transposed):
        out[block] += wide_mm(t.to(second.dtype), second) * scale
    return (out if y is None else out + y).to(rows.dtype)
