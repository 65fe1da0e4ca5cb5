"""Products of many rows with factors that were dequantised for the library: two large products instead of a packed one.

Nothing here waits for the device, so a CUDA graph can capture it.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from ..layout import COLUMN_BLOCK, ceil_div, round_up
from ..operands import FactorOperands
from .device import on_device

NUMBERS = 1024  # that a program of `round_t` and `add_product` takes


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


def wide_mm(a: Tensor, b: Tensor) -> Tensor:
    """a b in float32, whatever 16-bit dtype they have."""
    if a.dtype == torch.float32:
        return a @ b
    return torch.mm(a, b, out_dtype=torch.float32) if a.is_cuda else a.float() @ b.float()


def delta_linear(x: Tensor, y: Tensor | None, operands: FactorOperands, transposed: bool) -> Tensor:
    """Two library products an entry and place; the same rounding as the kernels.  Transposed: gradients for x."""
    return _delta_linear(x, y, operands, transposed, False)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, operands: FactorOperands) -> Tensor:
    return _delta_linear(x, torch.nn.functional.linear(x, weight, bias), operands, False, True)


def _delta_linear(x: Tensor, y: Tensor | None, operands: FactorOperands, transposed: bool, own: bool) -> Tensor:
    """own: y is nobody else's, and may be written into."""
    places, before = operands.slots.shape[1], None if y is None else y.reshape(-1, operands.out_features).contiguous()
    rows = x.reshape(-1, x.shape[-1]).contiguous()
    with on_device(x):
        if places > 1:
            out = _add_widened(rows, before, operands, transposed)
        elif operands.layout == "planar" and x.dtype == torch.bfloat16:
            out = _add_in_place(rows, before, operands, transposed, own)
        else:
            out = _add_at_the_end(rows, before, operands, transposed, own)
    return out.view(*x.shape[:-1], operands.out_features)


def _entries(
    rows: Tensor, operands: FactorOperands, transposed: bool, scaled: bool
) -> Iterator[tuple[int, slice, Tensor, Tensor]]:
    """For every entry and place: (its number, its rows, t in x's dtype, the second factor, of which t U^T is 2^e too
    large, unless t is scaled)."""
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
        t = round_t(wide_mm(rows[block].to(dtype), first), operands, flat, gammas, at, rows.dtype, scaled)
        yield at, block, t, second


def round_t(
    wide: Tensor, operands: FactorOperands, slots: Tensor, gammas: Tensor, at: int, dtype: torch.dtype, scaled: bool
) -> Tensor:
    """t in ``dtype``, from x V in float32 [rows, max_rank]."""
    from .dequantise import round_t

    out = torch.empty(wide.shape, dtype=dtype, device=wide.device)
    rows, width = wide.shape
    round_t[(rows, ceil_div(width, NUMBERS))](
        wide,
        operands.packed[1],
        operands.table,
        slots,
        gammas,
        at,
        out,
        operands.table.shape[0],
        width,
        SCALE=scaled,
        BLOCK=NUMBERS,
    )
    return out


def _add_in_place(rows: Tensor, y: Tensor | None, operands: FactorOperands, transposed: bool, own: bool) -> Tensor:
    """One place in bfloat16: a product that adds to y and rounds once.  The scale, a power of two, is exact in t."""
    if y is None:
        out = rows.new_empty(rows.shape[0], operands.out_features)
    else:
        out = y if own else y.clone()
    for _, block, t, second in _entries(rows, operands, transposed, True):
        if y is None:
            torch.mm(t, second, out=out[block])
        else:
            out[block].addmm_(t, second)
    return out


def _add_at_the_end(rows: Tensor, y: Tensor | None, operands: FactorOperands, transposed: bool, own: bool) -> Tensor:
    """One place: products in float32, each scaled, added to y and rounded by one launch."""
    out = y if own and y is not None else rows.new_empty(rows.shape[0], operands.out_features)
    for at, block, t, second in _entries(rows, operands, transposed, False):
        add_product(wide_mm(t.to(second.dtype), second), operands, at, None if y is None else y[block], out[block])
    return out


def add_product(product: Tensor, operands: FactorOperands, at: int, y: Tensor | None, out: Tensor) -> None:
    """out = y + 2^-e product, all [rows, out_features] and contiguous; out may be y."""
    from .dequantise import add_product

    add_product[(ceil_div(out.numel(), NUMBERS),)](
        product,
        operands.packed[1],
        operands.table,
        operands.slots.reshape(-1),
        at,
        out if y is None else y,
        out,
        operands.table.shape[0],
        out.numel(),
        ADD=y is not None,
        BLOCK=NUMBERS,
    )


def _add_widened(rows: Tensor, y: Tensor | None, operands: FactorOperands, transposed: bool) -> Tensor:
    """Several places: in float32, rounded at the end."""
    out = torch.zeros(rows.shape[0], operands.out_features, dtype=torch.float32, device=rows.device)
    for at, block, t, second in _entries(rows, operands, transposed, False):
        add_product(wide_mm(t.to(second.dtype), second), operands, at, out[block], out[block])
    return (out if y is None else out + y).to(rows.dtype)
