"""Sampled elements as matrices: dense ones for the library's products, and rows.  No device tensor's values are read
here."""

import torch
from torch import Tensor

from ..layout import ceil_div
from ..operands import SampleOperands
from ..sample_words import RUN
from .device import on_device
from .library_products import wide_mm

DENSE_COLUMNS, ROW_COLUMNS = 512, 512


def arena_of(words: list[Tensor], like: Tensor) -> Tensor:
    return words[0] if words else torch.empty(0, dtype=torch.int32, device=like.device)


def dense(operands: SampleOperands, at: int, shape: tuple[int, int], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(small numbers [m, n], factor [1]) whose product is the matrix of place ``at`` of all entries', gamma times."""
    from .sampled_dense import sampled_dense

    words, table, starts, scales, slots, weights = operands
    (m, n), device = shape, table.device
    matrix, factor = torch.empty(m, n, dtype=dtype, device=device), torch.empty(1, device=device)
    sampled_dense[(ceil_div(n, DENSE_COLUMNS), ceil_div(m, RUN))](
        arena_of(words, table),
        table,
        starts,
        scales,
        slots.reshape(-1),
        weights.reshape(-1),
        at,
        matrix,
        factor,
        starts.shape[0] - 1,
        m,
        n,
        BLOCK_N=DENSE_COLUMNS,
        FIELDS=table.shape[1],
        num_warps=4,
    )
    return matrix, factor


def add_dense(x: Tensor, y: Tensor, operands: SampleOperands, transposed: bool) -> Tensor:
    """A library product with the dense matrix of every entry and place; transposed: x D instead of x D^T.

    One place in bfloat16: x takes the factor, as t does of components, and the product adds to y and rounds once.
    """
    rows = x.reshape(-1, x.shape[-1])
    entries, places = operands.slots.shape
    each, out_features = rows.shape[0] // entries, y.shape[-1]
    shape = (rows.shape[1], out_features) if transposed else (out_features, rows.shape[1])
    in_place = places == 1 and x.dtype == torch.bfloat16
    dtype = x.dtype if in_place else torch.float32
    full = y.to(dtype, copy=True, memory_format=torch.contiguous_format)
    out = full.view(-1, out_features)
    with on_device(x):
        for at in range(entries * places):
            matrix, factor = dense(operands, at, shape, x.dtype)
            matrix = matrix if transposed else matrix.T
            block = slice(at // places * each, (at // places + 1) * each)
            if in_place:
                out[block].addmm_((rows[block] * factor).to(x.dtype), matrix)
            else:
                out[block] += wide_mm(rows[block], matrix) * factor
    return full.to(y.dtype)


def add_rows(ids: Tensor, y: Tensor, operands: SampleOperands, rows: int) -> Tensor:
    """Ids that no row has raise IndexError on a CPU, and give NaN on a GPU, which nothing waits for to know."""
    from .sampled_dense import sampled_rows

    words, table, starts, scales, slots, weights = operands
    if not y.is_cuda and ids.numel() and (largest := int(ids.max())) >= rows:
        raise IndexError(f"an id of {largest} is beyond the matrix's {rows} rows")
    own = y.contiguous()
    out, columns = torch.empty_like(own), y.shape[-1]
    entries, places = slots.shape
    with on_device(y):
        sampled_rows[(ids.numel(), ceil_div(columns, ROW_COLUMNS))](
            ids.contiguous(),
            own,
            out,
            arena_of(words, y),
            table,
            starts,
            scales,
            slots.contiguous(),
            weights.contiguous(),
            starts.shape[0] - 1,
            ids.numel() // entries,
            places,
            rows,
            columns,
            BLOCK_N=ROW_COLUMNS,
            FIELDS=table.shape[1],
            num_warps=4,
        )
    return out
