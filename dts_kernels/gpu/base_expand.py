"""base_expand: y = x W^T + bias + 2^-e t U^T: the base product and the delta in registers, one store."""

import triton
import triton.language as tl

from .decode import select_rows
from .expand import expanded


@triton.jit
def base_expand(
    x,
    weight,
    bias,
    t,
    words,
    scalars,
    table,
    slots,
    out,
    tasks,
    rows,
    entries,
    per_entry,
    places,
    width,
    in_features,
    out_features,
    out_columns,
    BLOCK_T: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SPLIT: tl.constexpr,
    GROUPED: tl.constexpr,
    ENTRIES: tl.constexpr,
    LEVELS: tl.constexpr,
    BIAS: tl.constexpr,
    PDL: tl.constexpr,
    ASM: tl.constexpr,
):
    """x [rows, in_features], weight [out_features, in_features], bias [out_features], out [rows, out_features].

    t [SPLIT, places, rows, width] of `shrink`.  With PDL this starts while shrink runs and waits for it only after
    the base loop.  Grid: (ceil(out_features / BLOCK_N), row blocks).
    """
    row, real, entry = select_rows(slots, tl.program_id(1), entries, per_entry, places, BLOCK_T, GROUPED, ENTRIES)
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    any_row = tl.sum(real.to(tl.int32), 0) > 0
    base = tl.zeros((BLOCK_T, BLOCK_N), tl.float32)
    for block in range(0, tl.where(any_row, tl.cdiv(in_features, BLOCK_K), 0)):
        inside = block * BLOCK_K + k
        tile = tl.load(
            x + row[:, None] * in_features + inside[None, :],
            mask=real[:, None] & (inside < in_features)[None, :],
            other=0.0,
        )
        w = tl.load(
            weight + n.to(tl.int64)[:, None] * in_features + inside[None, :],
            mask=(n < out_features)[:, None] & (inside < in_features)[None, :],
            other=0.0,
        )
        base = tl.dot(tile, tl.trans(w), base, input_precision="tf32x3")
    if BIAS:
        base += tl.load(bias + n, mask=n < out_features, other=0.0).to(tl.float32)[None, :]
    if PDL:
        tl.extra.cuda.gdc_wait()
    base += expanded(
        t,
        words,
        scalars,
        table,
        slots,
        tasks,
        rows,
        places,
        width,
        out_columns,
        row,
        real,
        entry,
        n,
        out.dtype.element_ty,
        BLOCK_T,
        BLOCK_N,
        SPLIT,
        LEVELS,
        ASM,
    )
    tl.store(
        out + row[:, None] * out_features + n[None, :],
        base.to(out.dtype.element_ty),
        mask=real[:, None] & (n < out_features)[None, :],
    )
