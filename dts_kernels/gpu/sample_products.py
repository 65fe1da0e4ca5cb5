"""Products straight from the words of sampled elements: which kernels run, with which shapes, and what runs beside the
base's product.  No device tensor's values are read here."""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from ..layout import ceil_div
from ..operands import SampleOperands
from ..paths import Finish
from ..sample_words import RUN
from . import launch, repeat_samples
from .launch import Bound, Call
from .sample_matrices import arena_of

MOST_ROWS = 8  # of an entry, that a program decodes codes for
RUNS = 32  # a warp's lanes: runs of rows, whose words lie beside each other
MOST_PARTS = 16
LAID_ROWS = 4  # single rows of tasks, from here x is laid out; modelled, not measured
LARGEST_LAID = 512  # as in samples.py
LAID_COLUMNS, ADDED = 256, 1024
LAUNCH, BANDWIDTH, FLOPS = 2.5, 2.4e6, 6e8  # microseconds in a graph; bytes and operations a microsecond, an H100's


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


@lru_cache(maxsize=4096)
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


def beside_pays(c: Shape, out_features: int, in_features: int, rows: int, itemsize: int) -> bool:
    """Whether a sample's sum should run beside the base's product in a CUDA graph; modelled, not measured.

    Always where it is in parts anyway: all launches are the same then.  Else `add_parts` is one more, and the sum is
    written and read as float32 for it; what that may hide is at most the base's time, of which half is expected.
    """
    if c.split > 1:
        return True
    numbers = rows * out_features
    base = max(itemsize * out_features * in_features / BANDWIDTH, 2 * numbers * in_features / FLOPS)
    return base / 2 > LAUNCH + (8 + 2 * itemsize) * numbers / BANDWIDTH


class Launch:
    """A product straight from the words, not transposed: its operands, and the launches of its kernels.

    x: [..., in_features];  shape: chosen here if None.  What is launched is kept here until nobody needs it.
    """

    def __init__(self, x: Tensor, operands: SampleOperands, out_features: int, shape: Shape | None = None):
        words, self.table, self.starts, self.scales, slots, weights = operands
        self.x = (x if x.dim() == 2 else x.reshape(-1, x.shape[-1])).contiguous()
        self.words = arena_of(words, x)
        self.slots, self.weights, self.out_features = slots.contiguous(), weights.contiguous(), out_features
        entries, self.places = slots.shape
        self.known, self.fields = self.starts.shape[0] - 1, self.table.shape[1]
        self.rows, self.in_features = self.x.shape
        self.per_entry, self.room = self.rows // entries, room_of(self.in_features)
        self.index = launch.launcher.index(x)
        self.launched: list[tuple[Call, Bound | None]] = []
        processors = launch.launcher.properties(self.index).processors
        self.shape = shape or product_shape(processors, out_features, self.in_features, entries, self.per_entry)
        self.blocks = entries * ceil_div(self.per_entry, self.shape.block_t)
        self.laid = self.x
        if self.shape.laid:
            # what one row loads is a word wide anyway, and needs no conversion then
            dtype = torch.float32 if self.shape.block_t == 1 else x.dtype
            self.laid = x.new_empty(self.blocks, self.places, self.room, self.shape.block_t, dtype=dtype)

    def run(self, call: Call) -> None:
        self.launched.append((call, launch.run(call)))

    def parts(self) -> Tensor:
        """Room for parts of the sum."""
        return self.x.new_empty(self.shape.split, self.rows, self.out_features, dtype=torch.float32)

    def sum(self, out: Tensor, y: Tensor | None) -> None:
        """Into out: y, contiguous, + x D^T;  y None: `parts` of x D^T."""
        from .sampled_product import lay

        if self.shape.laid:
            self.run(
                Call(
                    lay,
                    (ceil_div(self.room, LAID_COLUMNS), self.blocks, self.places),
                    (self.x, self.laid, self.table, self.starts, self.slots),
                    (self.known, self.per_entry, self.places, self.in_features, self.room),
                    {"BLOCK_T": self.shape.block_t, "BLOCK_N": LAID_COLUMNS, "FIELDS": self.fields},
                    {},
                )
            )
        self.run(self.sum_call(out, y))

    def sum_call(self, out: Tensor, y: Tensor | None) -> Call:
        """Of what `lay` has laid out."""
        from .sampled_product import sampled_product

        c, x = self.shape, self.x
        return Call(
            sampled_product,
            (ceil_div(self.out_features, RUN * RUNS), self.blocks, c.split),
            (
                x,
                self.laid,
                x if y is None else y,
                out,
                self.words,
                self.table,
                self.starts,
                self.scales,
                self.slots,
                self.weights,
            ),
            (self.known, self.per_entry, self.places, self.rows, self.in_features, self.out_features, self.room),
            {
                "BLOCK_T": c.block_t,
                "RUNS": RUNS,
                "LANES": c.lanes,
                "SPLIT": c.split,
                "LAID": c.laid,
                "ADD": y is not None,
                "FIELDS": self.fields,
            },
            c.options,
        )

    def add_call(self, parts: Tensor, y: Tensor, out: Tensor) -> Call:
        """out = y, contiguous, + the sum of the parts."""
        from .sampled_product import add_parts

        constants = {"PARTS": parts.shape[0], "BLOCK": ADDED}
        return Call(add_parts, (ceil_div(out.numel(), ADDED),), (parts, y, out), (out.numel(),), constants, {})

    def beside_pays(self) -> bool:
        return beside_pays(self.shape, self.out_features, self.in_features, self.rows, self.x.element_size())

    def prepare(self, y: Tensor) -> None:
        """Load what `start_samples` launches in a graph and `add_samples`, in one part, does not."""

        def calls() -> tuple[Call, ...]:
            parts = self.parts()
            return self.sum_call(parts, None), self.add_call(parts, y, y)

        sizes = self.in_features, self.out_features, self.rows, self.per_entry, self.places, self.known, self.fields
        launch.prepare(("samples", self.index, self.x.dtype, self.shape, *sizes), calls)


def add_samples(x: Tensor, y: Tensor, operands: SampleOperands, transposed: bool, shape: Shape | None = None) -> Tensor:
    """Straight from the words; not transposed.  shape: chosen if None."""
    launched, own = Launch(x, operands, y.shape[-1], shape), y.contiguous()
    out = torch.empty_like(own)
    if launched.shape.split == 1:
        launched.sum(out, own)
        if launched.beside_pays() and not launch.launcher.captures(launched.index):
            launched.prepare(own)
        repeat_samples.keep(launched, own, out, None)
        return out
    parts = launched.parts()
    launched.sum(parts, None)
    launched.run(launched.add_call(parts, own, out))
    repeat_samples.keep(launched, own, out, parts)
    return out


def start_samples(x: Tensor, operands: SampleOperands, out_features: int, shape: Shape | None = None) -> Finish | None:
    """The same in two while a CUDA graph is captured on the current card, with the same bits: parts of x D^T beside
    what is launched next, and y + them when that is there.  None where it would not be faster."""
    launched = Launch(x, operands, out_features, shape)
    if not launched.beside_pays():
        return None
    parts, beside = launched.parts(), launch.launcher.beside(launched.index, "samples")
    with beside:
        launched.sum(parts, None)

    def finish(y: Tensor) -> Tensor:
        beside.join()
        own = y.contiguous()
        out = torch.empty_like(own)
        launch.run(launched.add_call(parts, own, out))
        return out

    return finish
