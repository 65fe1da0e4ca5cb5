"""Block sizes of a device from the sweeps that ran on it: `python -m benchmarks.kernels.configs [--write]`.

A sweep's row has, for each number of parts that shrink's contraction is in, the best shrink and the best expand that
reads so many parts, in microseconds with [block_n, warps, stages, split] (benchmarks/results/<device>/sweeps.jsonl).
The pair with the least sum is what `dts_kernels/gpu/configs/<device>.json` ships.
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from dts_kernels.gpu import config
from dts_kernels.gpu.config import Config
from dts_kernels.layout import round_up
from dts_kernels.planar import RANK_BLOCK

RESULTS = Path(__file__).parents[1] / "results"
DEVICE = "NVIDIA H100 80GB HBM3"


def sweeps(device: str = DEVICE) -> list[dict]:
    """The sweeps' rows: case = [out_features, in_features, rank fraction, rows, "one" task or "distinct"]."""
    lines = (RESULTS / config.slug(device) / "sweeps.jsonl").read_text("utf-8").splitlines()
    return [row for row in map(json.loads, lines) if row["what"] == "sweep"]


def layout(row: dict) -> tuple[int, int]:
    """(rows of one task, blocks of rows) as `config.choose` counts them."""
    rows, work = row["case"][3:]
    return (rows, 1) if work == "one" else (1, rows)


def width(row: dict) -> int:
    """The ranks that kernels go through: a bank's capacity grows by blocks."""
    return round_up(row["k"], RANK_BLOCK)


def pairs(row: dict) -> dict[str, float]:
    """Parts -> microseconds of shrink and expand together, of those that were both measured."""
    shrink, expand = row["shrink_by_split"], row["expand_by_split"]
    return {parts: shrink[parts][0] + expand[parts][0] for parts in shrink if shrink[parts] and expand.get(parts)}


def best(row: dict) -> dict[str, Config]:
    """Key of a config -> the config of the fastest pair."""
    m, n = row["case"][:2]
    together = pairs(row)
    parts = min(together, key=lambda parts: together[parts])
    keys = {config.key("shrink", "bfloat16", width(row), n, *layout(row)): row["shrink_by_split"][parts]}
    for read in {parts, "1"}:  # eagerly by every program of expand, in a graph added up before
        keys[config.key("expand", "bfloat16", m, width(row), *layout(row), int(read))] = row["expand_by_split"][read]
    return {key: _config(*chosen) for key, (_, chosen) in keys.items()}


def _config(block_n: int, warps: int, stages: int, split: int) -> Config:
    return Config(block_n=block_n, warps=warps, stages=stages, split=split, asm=True)


def text(device: str = DEVICE) -> str:
    """The file's content."""
    found: dict[str, dict] = {}
    for row in sweeps(device):
        for key, chosen in best(row).items():
            if found.setdefault(key, asdict(chosen)) != asdict(chosen):
                raise ValueError(f"two sweeps of {key} differ: {found[key]} and {asdict(chosen)}")
    return json.dumps(found, indent=1, sort_keys=True) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write the file that is shipped, instead of printing it")
    if parser.parse_args().write:
        (config.SHIPPED / config.file_name(DEVICE)).write_text(text(), "utf-8")
    else:
        print(text(), end="")


if __name__ == "__main__":
    main()
