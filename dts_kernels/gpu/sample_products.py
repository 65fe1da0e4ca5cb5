"""The GPU paths of sampled elements: which kernels run, with which shapes.  No device tensor's values are read here,
but for ids outside of a CUDA graph."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..layout import ceil_div
from ..operands import SampleOperands
from ..sample_words import RUN
from . import launch
from .device import on_device
from .launch import Call
from .library_products import wide_mm

MOST_ROWS = 8  # of an entry, that a program decodes codes for
RUNS = 32  # a warp's lanes: runs of rows, whose words lie beside each other
MOST_PARTS = 16
LAID_ROWS = 4  # single rows of tasks, from here x is laid out; modelled, not measured
LARGEST_LAID = 512  # as in samples.py
DENSE_COLUMNS, ROW_COLUMNS, LAID_COLUMNS, ADDED = 512, 512, 256, 1024


@dataclass(frozen=True)
class Shape:
    """Of a launch of `sampled_product`.  lanes: that share a run, a warp each;  split: programs that do;
    laid: whether x is laid out by a launch before it."""

    block_t: int
    lanes: int
    split: int
    laid: bool

    @property
    def options(self) -> dict:
        few = 168 if self.block_t == 4 or not self.laid else 128  # of 65,536 registers
        return {"num_warps": self.lanes, "maxnreg": 255 if self.block_t == 8 else few}


def product_shape(processors: int, out_features: int, in_features: int, entries: int, per_entry: int) -> Shape:
    """Lanes and parts enough for every processor; modelled, not measured.

    A part is a float of every output that is written and read again, so there are as few as give each processor a
    program, and none where the tasks alone do.  Few single rows are all latency: they do without a launch that halves
    the instructions.
    """
    block_t = min(MOST_ROWS, 1 << (per_entry - 1).bit_length())
    lanes = 4 if block_t > 2 else 8
    blocks = entries * ceil_div(per_entry, block_t)
    programs = ceil_div(out_features, RUN * RUNS) * blocks
    most = max(1, in_features // (64 * lanes))  # a lane has four groups at strides up to 16
    split = max(1, min(MOST_PARTS, most, processors // programs))
    return Shape(block_t, lanes, split, block_t > 1 or blocks >= LAID_ROWS)


def room_of(in_features: int) -> int:
    """Columns that `lay` makes of in_features, at most: a group's pitch is below twice its stride, and there may be
    three groups without columns."""
    return 2 * in_features + 4 * (LARGEST_LAID + RUN)


def add_samples(x: Tensor, y: Tensor, operands: SampleOperands, transposed: bool, shape: Shape | None = None) -> Tensor:
    """Straight from the words; not transposed.  shape: chosen here if None."""
    from .sampled_product import add_parts, lay, sampled_product

    words, table, starts, scales, slots, weights = operands
    rows, own = x.reshape(-1, x.shape[-1]).contiguous(), y.contiguous()
    slots, weights = slots.contiguous(), weights.contiguous()
    entries, places = slots.shape
    (count, in_features), out_features = rows.shape, y.shape[-1]
    per_entry = count // entries
    processors = launch.launcher.properties(launch.launcher.index(x)).processors
    c = shape or product_shape(processors, out_features, in_features, entries, per_entry)
    blocks, room, out = entries * ceil_div(per_entry, c.block_t), room_of(in_features), torch.empty_like(own)
    parts = out if c.split == 1 else torch.empty(c.split, count, out_features, dtype=torch.float32, device=x.device)
    laid, known = rows, starts.shape[0] - 1
    if c.laid:
        # what one row loads is a word wide anyway, and needs no conversion then
        dtype = torch.float32 if c.block_t == 1 else rows.dtype
        laid = torch.empty(blocks, places, room, c.block_t, dtype=dtype, device=x.device)
        launch.run(
            Call(
                lay,
                (ceil_div(room, LAID_COLUMNS), blocks, places),
                (rows, laid, table, starts, slots),
                (known, per_entry, places, in_features, room),
                {"BLOCK_T": c.block_t, "BLOCK_N": LAID_COLUMNS},
                {},
            )
        )
    launch.run(
        Call(
            sampled_product,
            (ceil_div(out_features, RUN * RUNS), blocks, c.split),
            (rows, laid, own, parts, _arena(words, rows), table, starts, scales, slots, weights),
            (known, per_entry, places, count, in_features, out_features, room),
            {"BLOCK_T": c.block_t, "RUNS": RUNS, "LANES": c.lanes, "SPLIT": c.split, "LAID": c.laid},
            c.options,
        )
    )
    if c.split > 1:
        grid, constants = (ceil_div(out.numel(), ADDED),), {"PARTS": c.split, "BLOCK": ADDED}
        launch.run(Call(add_parts, grid, (parts, own, out), (out.numel(),), constants, {}))
    return out


def dense(operands: SampleOperands, at: int, shape: tuple[int, int], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(small numbers [m, n], factor [1]) whose product is the matrix of place ``at`` of all entries', gamma times."""
    from .sampled_dense import sampled_dense

    words, table, starts, scales, slots, weights = operands
    (m, n), device = shape, table.device
    matrix, factor = torch.empty(m, n, dtype=dtype, device=device), torch.empty(1, device=device)
    sampled_dense[(ceil_div(n, DENSE_COLUMNS), ceil_div(m, RUN))](
        _arena(words, table),
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
    """Raises IndexError for ids that no row has, which it waits for the device to know; not while a CUDA graph is
    captured, where such an id adds nothing."""
    from .sampled_dense import sampled_rows

    words, table, starts, scales, slots, weights = operands
    capturing = y.is_cuda and torch.cuda.is_current_stream_capturing()
    if not capturing and ids.numel() and (largest := int(ids.max())) >= rows:
        raise IndexError(f"an id of {largest} is beyond the matrix's {rows} rows")
    own = y.contiguous()
    out, columns = torch.empty_like(own), y.shape[-1]
    entries, places = slots.shape
    with on_device(y):
        sampled_rows[(ids.numel(), ceil_div(columns, ROW_COLUMNS))](
            ids.contiguous(),
            own,
            out,
            _arena(words, y),
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
            num_warps=4,
        )
    return out


def _arena(words: list[Tensor], like: Tensor) -> Tensor:
    return words[0] if words else torch.empty(0, dtype=torch.int32, device=like.device)
