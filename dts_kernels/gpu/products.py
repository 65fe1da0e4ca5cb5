"""The ops' GPU paths: which kernels run, with which shapes and scratch.  Nothing here reads a device tensor's values.

levels: whether any task of the bank has levels (its layout is "planar_levels"), which the kernels then assume of all.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..contents import plain
from ..layout import COLUMN_BLOCK, ceil_div, round_up
from ..operands import DenseOperands, FactorOperands
from ..routing import Routing
from . import config, launch, repeat, same_input, vectors
from .config import Config
from .device import Started, on_device
from .launch import Call

COMBINED = 1024  # elements of t that a program adds up
GROUPED_ENTRIES = 1024  # up to so many rows, rows of one task are found inside the kernels
ROWS = 16  # of a program of `delta_rows`, the least that a tensor core takes


def groups(entries: int, per_entry: int, places: int) -> bool:
    """Whether programs gather the rows of one task (`decode.select_rows`)."""
    return per_entry == 1 and places == 1 and 1 < entries <= GROUPED_ENTRIES


def row_blocks(entries: int, per_entry: int, grouped: bool, block_t: int) -> int:
    """Programs for all rows."""
    return entries if grouped else entries * ceil_div(per_entry, block_t)


def padded_entries(entries: int) -> int:
    """The next power of two, as Triton's ranges are."""
    return 1 << max(entries - 1, 0).bit_length()


class Launch:
    """One op's operands and row layout, and the launches of its kernels.

    x: [rows, in_features], contiguous, fp16, bf16 or fp32.  configs: kernel name -> Config, else they are chosen.
    adds: float32 [slots, out_features], what tasks add to the product, or None
    """

    def __init__(
        self,
        x: Tensor,
        operands: FactorOperands,
        configs: dict[str, Config] | None = None,
        adds: Tensor | None = None,
    ):
        packed, table, slots, weights, out_features, max_rank, layout = self.operands = operands
        self.x, (self.words, self.scalars), self.table = x, packed, table
        self.slots, self.weights, self.levels = slots.contiguous(), weights.contiguous(), layout == "planar_levels"
        self.rows, self.in_features = x.shape
        self.out_features, self.width = out_features, max_rank
        self.entries, self.places = slots.shape
        self.per_entry = self.rows // self.entries
        self.grouped = groups(self.entries, self.per_entry, self.places)
        self.index = launch.launcher.index(x)
        self.device = launch.launcher.properties(self.index)
        self.given, self.adds = configs or {}, adds
        self.launched: dict[str, tuple[Call, Any]] = {}  # kernel -> its last launch here, and what was compiled for it

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
        return row_blocks(self.entries, self.per_entry, self.grouped, block_t)

    def blocks(self, c: Config) -> dict:
        """Constants that all kernels have."""
        return {
            "BLOCK_T": c.block_t,
            "BLOCK_N": c.block_n,
            "ASM": c.asm and not self.levels and self.index >= 0,  # the interpreter runs no assembly
            "GROUPED": self.grouped,
            "LEVELS": self.levels,
            "ENTRIES": padded_entries(self.entries) if self.grouped else 1,
        }

    @property
    def sizes(self) -> tuple[int, ...]:
        return self.table.shape[0], self.rows, self.entries, self.per_entry, self.places

    def scratch(self, parts: int) -> Tensor:
        """Room for t in so many parts."""
        dtype = self.x.dtype if parts == 1 else torch.float32
        return torch.empty(parts, self.places, self.rows, self.width, dtype=dtype, device=self.x.device)

    def launch(self, name: str, kernel, grid: tuple[int, ...], pointers, sizes, constants, options) -> None:
        """Launch, and keep what was launched."""
        call = Call(kernel, grid, pointers, sizes, constants, options)
        self.launched[name] = call, launch.launcher.launch(call)

    def shrink(self, pdl: bool = False, t: Tensor | None = None) -> tuple[Tensor, int]:
        """(t, how many parts it is stored in); t: `scratch`, made here if None."""
        from .shrink import shrink

        c = self.config("shrink", self.width, self.in_features)
        t = self.scratch(c.split) if t is None else t
        self.launch(
            "shrink",
            shrink,
            (ceil_div(self.width, c.block_n), self.row_blocks(c.block_t), self.places * c.split),
            (self.x, self.words, self.scalars, self.table, self.slots, self.weights, t),
            (*self.sizes, self.in_features, self.width),
            self.blocks(c) | {"SPLIT": c.split, "PDL": pdl},
            {"num_warps": c.warps, "num_stages": c.stages} | registers(self.x.dtype, self.levels, c.warps),
        )
        return t, c.split

    def combine_call(self, parts: Tensor, t: Tensor) -> Call:
        """t = the sum of its parts, once: each program of expand would read them all."""
        from .shrink import combine_parts

        grid, constants = (ceil_div(t.numel(), COMBINED),), {"PARTS": parts.shape[0], "BLOCK": COMBINED}
        return Call(combine_parts, grid, (parts, t), (t.numel(),), constants, {})

    def expand(self, t: Tensor, parts: int, y: Tensor | None, in_place: bool = False) -> Tensor:
        """in_place: into y itself, each of whose numbers is read by the program that writes it."""
        out = y if in_place and y is not None else self.x.new_empty(self.rows, self.out_features)
        call = self.expand_call(t, parts, y, out)
        self.launched["expand"] = call, launch.launcher.launch(call)
        return out

    def expand_call(self, t: Tensor, parts: int, y: Tensor | None, out: Tensor) -> Call:
        from .expand import expand

        c = self.config("expand", self.out_features, self.width, parts)
        return Call(
            expand,
            (ceil_div(self.out_features, c.block_n), self.row_blocks(c.block_t)),
            (t, self.words, self.scalars, self.table, self.slots, out if y is None else y, out)
            + (self.scalars if self.adds is None else self.adds, self.weights),
            (*self.sizes, self.width, self.out_features, round_up(self.out_features, COLUMN_BLOCK))
            + (0 if self.adds is None else self.adds.shape[0],),
            self.blocks(c) | {"SPLIT": parts, "ADD": y is not None, "ADDS": self.adds is not None},
            {"num_warps": c.warps, "num_stages": c.stages} | registers(self.x.dtype, self.levels, c.warps),
        )

    def linear(self, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The library's product of all rows, so that the base is read once whatever tasks they use, and the delta.

        In a CUDA graph shrink runs beside it, on a stream of its own that is forked and joined here, and adds up its
        parts there.  *Measured* on an H100: shrink beside it saves up to .25 of the base's time, expand takes 3 to 6 us
        for whole t and 4 to 10 us for parts.
        """
        if not launch.launcher.captures(self.index):
            y, (t, parts) = torch.nn.functional.linear(self.x, weight, bias), self.shrink()
            if parts > 1:
                self.prepare(t, y)
            return self.expand(t, parts, y, in_place=True)
        shared = same_input.here()
        started = None if shared is None else shared.start(self)
        if started is None:
            started = self.start_shrink()
        y = torch.nn.functional.linear(self.x, weight, bias)
        return self.expand(started.join(), 1, y, in_place=True)

    def start_shrink(self) -> Started:
        """Beside what is launched from now on."""
        split = self.config("shrink", self.width, self.in_features).split
        t = self.scratch(split)
        return self.beside(t, self.scratch(1) if split > 1 else t, lambda: self.shrink(t=t))

    def beside(self, parts: Tensor, whole: Tensor, shrink: Callable[[], object]) -> Started:
        """Launch what writes parts, and add them up, beside what is launched from now on."""
        beside = launch.launcher.beside(self.index, "shrink")
        with beside:
            shrink()
            if whole is not parts:
                launch.launcher.launch(self.combine_call(parts, whole))
        return Started(whole, parts, beside)

    def shrink_together(self, matrices: Sequence[same_input.Matrix], parts: Tensor) -> None:
        """t of two or three matrices, this one's first, into parts (`same_input.rooms`)."""
        launch.launcher.launch(self.shrink_together_call(matrices, parts))

    def shrink_together_call(self, matrices: Sequence[same_input.Matrix], parts: Tensor) -> Call:
        from .shrink import shrink_together

        c = max(matrices, key=lambda m: m.width).config
        each = [*matrices, matrices[-1]][:3]
        words, scalars = zip(*[m.operands.packed for m in each])
        tables, widths = [m.operands.table for m in each], [m.width for m in each]
        columns = sum(ceil_div(m.width, c.block_n) for m in matrices)
        tasks, *sizes = self.sizes
        return Call(
            shrink_together,
            (columns, self.row_blocks(c.block_t), self.places * c.split),
            (self.x, *words, *scalars, *tables, self.slots, self.weights, parts),
            (*[table.shape[0] for table in tables], *widths, *sizes, self.in_features),
            self.blocks(c) | {"SPLIT": c.split, "MATRICES": len(matrices)},
            {"num_warps": c.warps, "num_stages": c.stages} | registers(self.x.dtype, self.levels, c.warps),
        )

    def prepare(self, t: Tensor, y: Tensor) -> None:
        """Load what `linear` launches in a graph only; t in parts."""

        def calls() -> tuple[Call, ...]:
            whole = self.scratch(1)
            return self.combine_call(t, whole), self.expand_call(whole, 1, y, y)

        sizes = self.in_features, self.out_features, self.width, self.levels, *self.sizes, _count(self.adds)
        launch.prepare(("linear", self.index, self.x.dtype, *sizes, *self.given.items()), calls)

    def base_expand(self, weight: Tensor, bias: Tensor | None) -> Tensor:
        from .base_expand import base_expand

        c = self.config("base_expand", self.out_features, self.in_features)
        t, parts = self.shrink(c.pdl)
        out = self.x.new_empty(self.rows, self.out_features)
        given = weight, weight if bias is None else bias
        self.launch(
            "base_expand",
            base_expand,
            (ceil_div(self.out_features, c.block_n), self.row_blocks(c.block_t)),
            (self.x, *given, t, self.words, self.scalars, self.table, self.slots, out),
            (
                *self.sizes,
                self.width,
                self.in_features,
                self.out_features,
                round_up(self.out_features, COLUMN_BLOCK),
            ),
            self.blocks(c) | {"BLOCK_K": c.block_k, "SPLIT": parts, "BIAS": bias is not None, "PDL": c.pdl},
            {"num_warps": c.warps, "num_stages": c.stages} | ({"launch_pdl": True} if c.pdl else {}),
        )
        return out


def prepare(groups: Iterable[same_input.Group]) -> None:
    """Load what captures with these groups launch, and no call has launched before."""
    for matrices, _, rows, in_features, dtype, device in groups:
        made = Launch(torch.empty(rows, in_features, dtype=dtype, device=device), matrices[0].operands)
        parts, whole = same_input.rooms(made, matrices)
        calls = [made.shrink_together_call(matrices, parts)]
        if whole is not parts:
            calls.append(made.combine_call(parts, whole))
        for call in calls:
            launch.launcher.prepare(call)


def registers(dtype: torch.dtype, levels: bool, warps: int) -> dict:
    """Launch options of shrink and expand: without a limit ptxas aims at 96 registers and spills (sm_90, fp16)."""
    return {} if dtype == torch.float32 or levels or warps < 4 else {"maxnreg": 128}


def _flat(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1]).contiguous()


def _count(adds: Tensor | None) -> int | None:
    return None if adds is None else adds.shape[0]


def delta_linear(
    x: Tensor, y: Tensor | None, operands: FactorOperands, transposed: bool, adds: Tensor | None = None
) -> Tensor:
    """Not transposed."""
    with on_device(x):
        launch = Launch(_flat(x), operands, adds=adds)
        out = launch.expand(*launch.shrink(), None if y is None else _flat(y))
        repeat.keep("delta_linear" if y is None else "delta_linear+", launch, operands)
    return out.view(*x.shape[:-1], operands.out_features)


def linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, operands: FactorOperands, adds: Tensor | None = None
) -> Tensor:
    with on_device(x):
        launch = Launch(_flat(x), operands, adds=adds)
        blocks = launch.entries * launch.places
        # a transposed weight (GPT-2's) would be copied for the one kernel; the library takes it as it is
        fits = all(t is None or t.is_contiguous() and plain(t) for t in (weight, bias))
        if fits and config.fused(launch.device, launch.dtype, launch.per_entry, blocks, operands.max_rank):
            out = launch.base_expand(weight, bias)
            if adds is not None:
                vectors.task_rows(adds, Routing(launch.slots, launch.weights), out, out, *out.shape)
        else:
            out = launch.linear(weight, bias)
        repeat.keep("linear", launch, operands)
    return out.view(*x.shape[:-1], operands.out_features)


def reconstruct(operands: DenseOperands, dtype: torch.dtype) -> Tensor:
    from .reconstruct import reconstruct

    packed, table, gamma, base, out_features, in_features, _, layout = operands
    levels = layout == "planar_levels"
    words, scalars = packed
    slots = torch.arange(table.shape[0], dtype=torch.int32, device=words.device)
    gamma = gamma[: table.shape[0]].to(words.device, torch.float32).contiguous()  # a place a slot, no more
    out = torch.empty(out_features, in_features, dtype=dtype, device=words.device)
    with on_device(words):
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
            **tile_constants(levels, dtype),
            num_warps=8,
            num_stages=1,
        )
    return out


def rows(ids: Tensor, operands: FactorOperands, in_features: int, dtype: torch.dtype) -> Tensor:
    out = torch.empty(*ids.shape, in_features, dtype=dtype, device=ids.device)
    launch.run(rows_call(ids, operands, out, adds=False))
    return out


def add_rows(ids: Tensor, y: Tensor, operands: FactorOperands) -> Tensor:
    """y [*ids, in_features], contiguous, + `rows`, rounded once, in place."""
    launch.run(rows_call(ids, operands, y, adds=True))
    return y


def rows_call(ids: Tensor, operands: FactorOperands, out: Tensor, adds: bool) -> Call:
    """Into out, or adds: to it."""
    from .reconstruct import delta_rows

    packed, table, slots, weights, out_features, _, layout = operands
    levels, entries, places = layout == "planar_levels", *slots.shape
    count, in_features = ids.numel(), out.shape[-1]
    per_entry = count // entries
    grouped = groups(entries, per_entry, places)
    return Call(
        delta_rows,
        (ceil_div(in_features, 128), row_blocks(entries, per_entry, grouped, ROWS)),
        (ids, *packed, table, slots, weights, out, out),
        (table.shape[0], count, entries, per_entry, places)
        + (in_features, out_features, round_up(out_features, COLUMN_BLOCK)),
        {
            "BLOCK_T": ROWS,
            "GROUPED": grouped,
            "ENTRIES": padded_entries(entries) if grouped else 1,
            "LEVELS": levels,
            "ADD": adds,
            **tile_constants(levels, out.dtype),
        },
        {"num_warps": 8, "num_stages": 1},
    )


def tile_constants(levels: bool, dtype: torch.dtype) -> dict[str, Any]:
    """What `reconstruct` and `delta_rows` multiply, and how, for numbers of that dtype."""
    return {
        "D": _dot_dtype(torch.float32 if levels else dtype),
        "PRECISION": "ieee" if dtype == torch.float32 else "tf32",
    }


def _dot_dtype(dtype: torch.dtype):
    import triton.language as tl

    return {torch.float16: tl.float16, torch.bfloat16: tl.bfloat16, torch.float32: tl.float32}[dtype]
