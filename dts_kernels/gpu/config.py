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


@dataclass(frozen=True)
class Device:
    """What a choice may know of a GPU."""

    name: str
    processors: int
    capability: tuple[int, int]


@dataclass(frozen=True)
class Config:
    """Launch parameters of one kernel.  split: programs that share a contraction; pdl: dependent launch (sm_90);
    asm: decode by inline assembly (fewer instructions; off until a GPU run has compared it with pure Triton).
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


def key(kernel: str, dtype: str, columns: int, contracted: int, rows: int) -> str:
    """Name of a measured config: shrink|bfloat16|1280|4096|16."""
    return f"{kernel}|{dtype}|{columns}|{contracted}|{bucket(rows)}"


def heuristic(
    kernel: str, device: Device, dtype: str, columns: int, contracted: int, rows: int, programs: int = 1
) -> Config:
    """A config that fills the device and fits any shared memory of 99 KB.

    columns, contracted: N and K of the product; rows: of one task; programs: row blocks (tasks, places) beside it.
    """
    block_t = 32 if rows > 16 else 16
    if dtype == "float32":
        return Config(block_t=16, block_n=32, warps=4, stages=2, block_k=32)
    if kernel == "base_expand":
        block_n = 32 if ceil_div(columns, 64) * programs < device.processors else 64
        return Config(block_t, block_n, stages=4 if block_n == 32 else 3)
    # 128 columns a program decode with the fewest instructions, 64 where that would leave processors idle
    block_n = 128 if ceil_div(columns, 128) * programs >= device.processors else 64
    config = Config(block_t, block_n, stages=3)
    if kernel != "shrink":
        return config
    # every program of the consumer reads all parts of t, so splitting pays for few rows only
    grid, tiles = ceil_div(columns, block_n) * programs, ceil_div(contracted, 128)
    return replace(config, split=max(1, min(2 * device.processors // max(grid, 1), tiles, 8 // max(rows, 1))))


def choose(
    kernel: str, device: Device, dtype: str, columns: int, contracted: int, rows: int, programs: int = 1
) -> Config:
    """The measured config of this device if there is one, else `heuristic`."""
    measured = measured_configs(device.name).get(key(kernel, dtype, columns, contracted, rows))
    return Config(**measured) if measured else heuristic(kernel, device, dtype, columns, contracted, rows, programs)


def file_name(device_name: str) -> str:
    return "-".join(device_name.lower().replace("/", " ").split()) + ".json"


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
