"""The GPU paths of `add_samples`: which kernel runs, with which shapes.  No device tensor's values are read here."""

import torch
from torch import Tensor

from ..layout import ceil_div
from ..operands import SampleOperands
from . import launch
from .device import on_device
from .library_products import wide_mm

BLOCK_M, BLOCK_B, MOST_ROWS = 16, 8, 8  # few registers and many programs; modelled, not measured
PRODUCT_OPTIONS = {"num_warps": 4, "maxnreg": 128}  # without a limit ptxas aims at 96 registers and spills


def add_samples(x: Tensor, y: Tensor, operands: SampleOperands, transposed: bool) -> Tensor:
    """Straight from the codes; not transposed."""
    from .samples import sampled_product

    codes, table, starts, scales, slots, weights = operands
    rows, own = x.reshape(-1, x.shape[-1]).contiguous(), y.contiguous()
    out = torch.empty_like(own)
    entries, places = slots.shape
    per_entry, out_features = rows.shape[0] // entries, y.shape[-1]
    block_t = min(MOST_ROWS, 1 << (per_entry - 1).bit_length())
    launch.run(
        launch.Call(
            sampled_product,
            (ceil_div(out_features, BLOCK_M), entries * ceil_div(per_entry, block_t)),
            (rows, own, out, *_arena(codes, rows), table, starts, scales, slots.contiguous(), weights.contiguous()),
            (starts.shape[0] - 1, per_entry, places, rows.shape[1], out_features),
            {"BLOCK_T": block_t, "BLOCK_M": BLOCK_M, "BLOCK_B": BLOCK_B},
            PRODUCT_OPTIONS,
        )
    )
    return out


def add_dense(x: Tensor, y: Tensor, operands: SampleOperands, transposed: bool) -> Tensor:
    """A library product with the dense matrix of every entry and place; transposed: x D instead of x D^T."""
    from .samples import sampled_dense

    codes, table, starts, scales, slots, weights = operands
    rows = x.reshape(-1, x.shape[-1])
    entries, places = slots.shape
    each, out_features = rows.shape[0] // entries, y.shape[-1]
    m, n = (rows.shape[1], out_features) if transposed else (out_features, rows.shape[1])
    full = y.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
    out, slots, weights = full.view(-1, out_features), slots.reshape(-1), weights.reshape(-1)
    factor = torch.empty(1, dtype=torch.float32, device=x.device)
    with on_device(x):
        for at in range(entries * places):
            matrix = torch.empty(m, n, dtype=x.dtype, device=x.device)
            sampled_dense[(ceil_div(n, 64), ceil_div(m, 32))](
                *_arena(codes, rows),
                table,
                starts,
                scales,
                slots,
                weights,
                at,
                matrix,
                factor,
                starts.shape[0] - 1,
                m,
                n,
                BLOCK_M=32,
                BLOCK_N=64,
                num_warps=4,
            )
            block = slice(at // places * each, (at // places + 1) * each)
            out[block] += wide_mm(rows[block], matrix if transposed else matrix.T) * factor
    return full.to(y.dtype)


def _arena(codes: list[Tensor], like: Tensor) -> list[Tensor]:
    return codes or [torch.empty(0, dtype=torch.uint8, device=like.device)]
