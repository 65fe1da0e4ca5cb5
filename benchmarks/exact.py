"""Bytes, seconds and memory of method "exact" on real fine-tunes: python -m benchmarks.exact

The fine-tunes are those of `dts demo` (MiniLM-L6, 22.7 M parameters, on the disk once it ran), rounded to bfloat16 as
their base is; a lighter one has a tenth of their change.  Every one is compared bit for bit.
"""

import argparse
import time
from pathlib import Path

import torch
from safetensors.torch import load_file

import dts
from dts.cli.diff import compare
from dts.demo.finetune import base_folder, cache_folder
from dts.nn.sizes import exact_tensors


def rounded(tensors: dict[str, torch.Tensor], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    return {name: t.to(dtype) if t.is_floating_point() else t for name, t in tensors.items()}


def measure(name: str, base: dict[str, torch.Tensor], tuned: dict[str, torch.Tensor]) -> None:
    whole = sum(t.nbytes for t in tuned.values())
    equal = compare(base, tuned)["bit_equal"]
    start = time.perf_counter()
    adapter = dts.compress(base, tuned, method="exact", name="task")
    made = time.perf_counter() - start
    start = time.perf_counter()
    report = adapter.verify(base, tuned)
    checked = time.perf_counter() - start
    assert report.ok, report.problems
    sparse, dense = exact_tensors(adapter.config)
    print(
        f"{name:28} {equal:8.1%} {adapter.nbytes / 1e6:9.2f} {adapter.nbytes / whole:8.1%} {made:8.1f} {checked:8.1f}"
        f" {sparse:6} {dense:6}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cache = cache_folder() / "fine-tunes"
    parser.add_argument("--finetunes", type=Path, default=cache, help="folders of fine-tunes of MiniLM-L6")
    options = parser.parse_args()
    folders = sorted(path for path in options.finetunes.glob("*") if (path / "model.safetensors").is_file())
    if not folders:
        raise SystemExit(f"no fine-tunes in {options.finetunes}: make demo leaves some there")
    base = load_file(base_folder() / "model.safetensors")
    print(
        f"{'fine-tune':28} {'equal':>8} {'MB':>9} {'of it':>8} {'seconds':>8} {'verify':>8} {'sparse':>6} {'whole':>6}"
    )
    for folder in folders:
        tuned = load_file(folder / "model.safetensors")
        name = folder.name.rpartition("-")[0]
        before = {key: base.get(key.removeprefix("bert.")) for key in tuned}
        light = {
            key: value if before[key] is None else torch.lerp(before[key], value, 0.1) for key, value in tuned.items()
        }
        for text, dtype, given in (
            (name, torch.float32, tuned),
            (name, torch.bfloat16, tuned),
            (f"{name}, a tenth", torch.bfloat16, light),
        ):
            short = str(dtype).removeprefix("torch.")
            measure(f"{text}, {short}", rounded(base, dtype), rounded(given, dtype))


if __name__ == "__main__":
    main()
