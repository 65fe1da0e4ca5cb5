"""Measure configs on the GPU at hand and keep the best.  Called explicitly (`dts bench tune`), never by a product."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import product

import torch

from .. import layout, planar
from ..operands import FactorOperands
from . import config
from .config import Config
from .device import device_properties
from .products import Launch

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}


def candidates(kernel: str, contracted: int, rows: int) -> list[Config]:
    """Configs worth measuring: those that fill a device or decode with few instructions, and fit 99 KB."""
    block_t = 32 if rows > 16 else 16
    splits = [s for s in (1, 2, 4, 8) if s * rows <= 16 or s == 1] if kernel == "shrink" else [1]
    splits = [s for s in splits if s <= layout.ceil_div(contracted, layout.WORD_BLOCK)]
    blocks = [(32, 4), (64, 3), (64, 4)] if kernel == "base_expand" else [(32, 3), (64, 3), (128, 2), (128, 3)]
    found = [Config(block_t, n, warps, stages, split) for (n, stages), warps, split in product(blocks, (2, 4), splits)]
    if kernel != "base_expand":
        return found
    return [c for c in found if c.stages * c.block_k * (c.block_n + c.block_t) * 2 <= 99 * 1024]


def random_factors(out_features: int, in_features: int, rank: int, seed: int, device) -> layout.PackedFactors:
    generator = torch.Generator(device).manual_seed(seed)
    sides = [
        torch.randint(0, 256, (rows, layout.packed_width(rank)), dtype=torch.uint8, device=device, generator=generator)
        for rows in (out_features, in_features)
    ]
    # pad ranks of the last byte are code 0, as `pack` leaves them
    u, v = (layout.pack(layout.unpack(side, rank)) for side in sides)
    return layout.PackedFactors(u, v, torch.full((rank,), 1e-3, device=device))


def milliseconds(run: Callable[[], object], repeats: int = 20, flush: int = 256 << 20) -> list[float]:
    """Times of ``run`` in a CUDA graph, the L2 cache emptied before each (``flush`` bytes written)."""
    scratch = torch.empty(flush, dtype=torch.uint8, device="cuda")
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    times = []
    for _ in range(repeats):
        scratch.zero_()
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        stop.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(stop))
    return times


def rotated_milliseconds(runs: Sequence[Callable[[], object]], repeats: int = 20) -> list[float]:
    """Times of one of ``runs``, captured one after another in one CUDA graph: each should touch memory of its own.

    As a model pays for a layer; a replay of one alone adds some 5 us between the events.
    """
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            for run in runs:
                run()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = [run() for run in runs]
    times = []
    for i in range(repeats + 3):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        stop.record()
        torch.cuda.synchronize()
        if i >= 3:
            times.append(start.elapsed_time(stop) / len(runs))
    del kept
    return times


def best(timed: Iterable[tuple[Config, list[float]]]) -> Config:
    """The config with the lowest median."""
    return min(timed, key=lambda pair: sorted(pair[1])[len(pair[1]) // 2])[0]


def _delta(launch: Launch) -> torch.Tensor:
    return launch.expand(*launch.shrink(), None)


def tune(
    shapes: list[tuple[int, int, int]],
    rows=config.ROW_BUCKETS[:3],
    dtypes=("bfloat16",),
    progress: Callable[[str], None] = lambda line: None,
) -> str:
    """Measure (out_features, in_features, rank) shapes on the current CUDA device; returns the path of the JSON.

    Raises RuntimeError without a CUDA device.
    """
    if not torch.cuda.is_available():
        raise RuntimeError("tuning measures a CUDA device and there is none here")
    device = device_properties(torch.cuda.current_device())
    found: dict[str, Config] = {}
    for (m, n, rank), count, dtype in product(shapes, rows, dtypes):
        store = planar.PlanarStore(n, m, "cuda")
        store.add(0, random_factors(m, n, rank, 0, "cuda"))
        x, weight = (torch.randn(s, n, device="cuda", dtype=DTYPES[dtype]) for s in (count, m))
        slots, weights = torch.zeros(1, 1, dtype=torch.int32, device="cuda"), torch.ones(1, 1, device="cuda")
        operands = FactorOperands(store.packed, store.table, slots, weights, m, store.max_rank, store.layout)
        chosen: dict[str, Config] = {}
        for kernel, columns, contracted in (
            ("shrink", store.max_rank, n),
            ("expand", m, store.max_rank),
            ("base_expand", m, n),
        ):
            timed = []
            for c in candidates(kernel, contracted, count):
                launch = Launch(x, operands, configs=chosen | {kernel: c})
                run = partial(launch.base_expand, weight, None) if kernel == "base_expand" else partial(_delta, launch)
                timed.append((c, milliseconds(run)))
            chosen[kernel] = best(timed)
            found[config.key(kernel, dtype, columns, contracted, count)] = chosen[kernel]
            progress(f"{config.key(kernel, dtype, columns, contracted, count)}: {chosen[kernel]}")
    return str(config.save(device.name, found))
