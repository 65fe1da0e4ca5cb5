"""Block sizes: a pure function of kernel, device, dtype and sizes, which measured JSON overrides.

Keys never hold a row count but a bucket of it, so no batch size compiles anew, and nothing is tuned in a forward.
"""

import json
import os
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path

from ..layout import ceil_div

SHIPPED = Path(__file__).parent / "configs"
ROW_BUCKETS = (1, 4, 16, 64)  # the last stands for all above
PARTS = 4  # of a contraction, where few columns would leave processors idle; each consumer adds them up


@dataclass(frozen=True)
class Device:
    """What a choice may know of a GPU."""

    name: str
    processors: int
    capability: tuple[int, int]


@dataclass(frozen=True)
class Config:
    """Launch parameters of one kernel.  split: programs that share a contraction; pdl: dependent launch (sm_90);
    asm: decode by inline assembly (fewer instructions).
    """

    block_t: int = 16
    block_n: int = 64
    warps: int = 4
    stages: int = 4
    split: int = 1
    block_k: int = 128
    pdl: bool = False
    asm: bool = False


def bucket(rows: int) -> int:
    """The smallest of `ROW_BUCKETS` that is at least ``rows``."""
    return next((b for b in ROW_BUCKETS if rows <= b), ROW_BUCKETS[-1])


def key(kernel: str, dtype: str, columns: int, contracted: int, rows: int, blocks: int = 1, parts: int = 1) -> str:
    """Name of a measured config: shrink|bfloat16|1280|4096|16, and behind it x16 where so many blocks of rows run and
    /4 of an expand that reads so many parts."""
    several = (f"x{bucket(blocks)}" if blocks > 1 else "") + (f"/{parts}" if parts > 1 else "")
    return f"{kernel}|{dtype}|{columns}|{contracted}|{bucket(rows)}{several}"


def heuristic(
    kernel: str,
    device: Device,
    dtype: str,
    columns: int,
    contracted: int,
    rows: int,
    blocks: int = 1,
    parts: int = 1,
) -> Config:
    """A config that fills the device and fits any shared memory of 99 KB.

    columns, contracted: N and K of the product; rows: of one task; blocks: of rows (tasks, places), a program each
    beside the columns';  parts: that expand adds up of t.  Few rows: what the sweeps on an H100 found best, within 10 %
    (benchmarks/results/nvidia-h100-80gb-hbm3/sweeps.jsonl); more than 16 rows of one task were not swept.
    """
    if dtype == "float32":
        return Config(block_t=16, block_n=32, warps=4, stages=2, block_k=32)
    asm = device.capability == (9, 0)  # right in every test and 2 to 8 % faster there; elsewhere it was not run
    if kernel == "base_expand":
        narrow = ceil_div(columns, 64) * blocks < device.processors
        block_t = 32 if rows > 16 else 16
        return Config(block_t, 32 if narrow else 64, stages=4 if narrow else 3, asm=asm, pdl=asm)
    if rows > 16:
        # 128 columns a program decode with the fewest instructions, 64 where that would leave processors idle
        block_n = 128 if ceil_div(columns, 128) * blocks >= device.processors else 64
        return Config(32, block_n, stages=3, asm=asm)
    if blocks == 1:
        chosen = _one_task(kernel, device.processors, columns, contracted, parts)
    else:
        chosen = _a_task_each(kernel, device.processors, columns, contracted, blocks)
    return replace(chosen, asm=asm)


def _one_task(kernel: str, processors: int, columns: int, contracted: int, parts: int) -> Config:
    """Many narrow programs: each waits for memory most of its time."""
    if kernel == "expand":
        return Config(block_n=16 if parts == 1 else 32, warps=2)
    tiles = ceil_div(contracted, 128)
    wide = ceil_div(columns, 32)
    block_n = 32 if PARTS * wide >= processors else 16
    programs = ceil_div(columns, block_n)
    return Config(block_n=block_n, warps=2, split=max(1, min(PARTS, tiles, 2 * processors // programs)))


def _a_task_each(kernel: str, processors: int, columns: int, contracted: int, blocks: int) -> Config:
    """A program for each block of rows: wide ones as soon as there are enough of them."""
    if kernel == "expand":
        crowded = ceil_div(columns, 128) * blocks >= 8 * processors
        return Config(block_n=128, warps=2 if crowded else 4, stages=4 if contracted >= 512 and not crowded else 2)
    if ceil_div(columns, 128) * blocks >= 4 * processors:
        return Config(block_n=128)
    return Config(block_n=32, warps=2 if ceil_div(columns, 32) * blocks >= 2 * processors else 4)


def choose(
    kernel: str,
    device: Device,
    dtype: str,
    columns: int,
    contracted: int,
    rows: int,
    blocks: int = 1,
    parts: int = 1,
) -> Config:
    """The measured config of this device if there is one, else `heuristic`."""
    sizes = dtype, columns, contracted, rows, blocks, parts
    measured = measured_configs(device.name).get(key(kernel, *sizes))
    return Config(**measured) if measured else heuristic(kernel, device, *sizes)


def for_levels(chosen: Config) -> Config:
    """The same for codes of four arbitrary levels, whose decode takes more registers than two warps have."""
    return replace(chosen, warps=max(chosen.warps, 4)) if chosen.block_n == 128 else chosen


FUSED_ROWS, FUSED_RANK = range(5, 17), 512


def fused(device: Device, dtype: str, rows: int, blocks: int, rank: int) -> bool:
    """Whether one kernel for the base's product and expand beats the library's product with shrink beside it.

    *Measured* on an H100 in CUDA graphs, times the base alone: 16 rows of one task, r = .3: 1.39 against 1.54; one row
    2.35 against 1.86 (r = .3) and 1.43 against 1.31 (r = .05); a task a row 7.3 against 3.0, as each of its blocks
    reads the whole base.  Elsewhere it has not been shown to be faster, so it is not taken.
    """
    if device.capability != (9, 0) or dtype == "float32" or blocks > 1:
        return False
    return rows in FUSED_ROWS and rank >= FUSED_RANK


def slug(device_name: str) -> str:
    """What files and folders of a device's figures are called."""
    return "-".join(device_name.lower().replace("/", " ").split())


def file_name(device_name: str) -> str:
    return slug(device_name) + ".json"


def user_folder() -> Path:
    """Where the tuner writes: $DTS_KERNEL_CONFIGS, else ~/.cache/dts/kernels."""
    return Path(os.environ.get("DTS_KERNEL_CONFIGS") or Path.home() / ".cache" / "dts" / "kernels")


@cache
def measured_configs(device_name: str) -> dict[str, dict]:
    """Shipped configs of a device, overridden by the user's own."""
    found: dict[str, dict] = {}
    for folder in (SHIPPED, user_folder()):
        path = folder / file_name(device_name)
        if path.is_file():
            found |= json.loads(path.read_text())
    return found


def save(device_name: str, configs: dict[str, Config]) -> Path:
    """Add measured configs to the user's file of a device; returns its path."""
    path = user_folder() / file_name(device_name)
    path.parent.mkdir(parents=True, exist_ok=True)
    known = json.loads(path.read_text()) if path.is_file() else {}
    text = json.dumps(known | {k: asdict(c) for k, c in configs.items()}, indent=1, sort_keys=True) + "\n"
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    unfinished.write_text(text)
    unfinished.replace(path)  # the old ones or the new ones whole, for those who read meanwhile
    measured_configs.cache_clear()
    return path
