"""What binds the CPU passes of `benchmarks.kernels.cpu_model`: what the machine allows, beside what they take.

    python -m benchmarks.kernels.roofline [--seconds S] [--out FOLDER]
    python -m benchmarks.kernels.roofline --table FOLDER    (what `--out` wrote there, as docs/performance.md has it)

One thread, its own processor time, on x86.  `roofline.c`, compiled with the flags of the instruction set in use, says
how many multiplications a core does at most: of the library's floats, of digits (components), and of digits behind a
shuffle (samples of small strides); a read of memory says how many bytes.  The deltas of a case are counted from the
shapes (`counts`), so  least = 1 + (products and bytes at those rates) / the plain model's time: all else (Python,
decoding, quantising, sums) costs nothing there.  `and calls` adds what a pass of a single token takes more than the
plain model's: every layer's call, and every code expanded once, for hardly a product.  Beside them the ratio that was
measured, and what takes most of those two.
"""

import argparse
import json
import subprocess
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.kernels import cpu_model
from dts.files import write_text
from dts_kernels.cpu import build, native, rules

LAYERS = [(384, 384, 24), (1536, 384, 6), (384, 1536, 6)]  # out_features, in_features, how many the encoder has
TOKENS = 32


def counts(m: int, n: int, rank: int, stride: int | None, rows: int, tasks: int, whole: bool) -> dict[str, float]:
    """What one layer [m, n] does for ``rows`` rows of ``tasks`` tasks beside the base's product.

    digits, sampled: products;  bytes: of codes, and of a copy of the weight (whole: it takes the deltas of one task).
    """
    elements = 0 if stride is None else m * -(-n // stride)
    code_bytes = tasks * ((m + n) * rank + elements) / 4
    if whole:
        return {"digits": m * n * rank, "sampled": elements, "bytes": code_bytes + 12 * m * n}
    return {"digits": rows * (m + n) * rank, "sampled": rows * elements, "bytes": code_bytes}


def least(need: dict[str, float], rates: dict[str, float]) -> dict[str, float]:
    """Nanoseconds of each resource; rates: the same keys, a nanosecond."""
    return {name: count / rates[name] for name, count in need.items()}


def rates() -> dict[str, float]:
    """Products, and bytes from memory, that a core does a nanosecond; SystemExit where they cannot be measured."""
    variant, command = native.variant(), build.compiler()
    flags = build.VARIANTS.get(build.machine(), {}).get(variant)
    if flags is None or command is None or not variant.startswith("avx"):
        raise SystemExit(
            f"the roofline needs x86 with AVX2 or AVX-512, and a C compiler; here is {variant or 'no library'}"
        )
    with tempfile.TemporaryDirectory() as folder:
        program = str(Path(folder, "roofline"))
        source = str(Path(__file__).with_suffix(".c"))
        subprocess.run([*command, "-std=gnu11", "-O3", *flags[1], source, "-o", program], check=True)
        lines = subprocess.run([program], check=True, capture_output=True, text=True).stdout.split("\n")
    found = {name: float(value) for name, value in (line.split() for line in lines if line)}
    memory = torch.ones(1 << 26)  # 256 MiB: no cache holds it
    found["bytes"] = 4 * memory.numel() / (_least_time(memory.sum, 5) * 1e9)
    return found


def _least_time(function, times: int) -> float:
    best = float("inf")
    for _ in range(times):
        begin = time.thread_time()
        function()
        best = min(best, time.thread_time() - begin)
    return best


def base_rate() -> float:
    """Products a nanosecond that the library's float32 product does, of 1024 rows."""
    x, weight = torch.randn(1024, 384), torch.randn(1536, 384)
    return 1024 * 384 * 1536 / (_least_time(lambda: torch.nn.functional.linear(x, weight), 10) * 1e9)


def stored(ours, shape: tuple[int, int]) -> tuple[int, int | None]:
    """Rank of the components and stride of the sample that a task has of the first layer of this shape."""
    for module in ours.modules():
        delta = getattr(module, "dts", None) and module.dts.parameters.get("weight")
        if isinstance(module, torch.nn.Linear) and delta and tuple(delta.shape) == shape:
            banks = delta.matrices[None].main.banks
            sample = banks["sample"].bank.samples(0)[0].stride if "sample" in banks else None
            return banks["components"].bank.max_rank, sample
    raise LookupError(shape)


def run(seconds: float) -> list[dict]:
    """Print and return the machine's rates and, a case each, least and measured ratio."""
    known, base = rates(), base_rate()
    print(
        f"{native.variant()}, a core: {known['float']:.0f} float products a ns at most, {base:.0f} in the library's; "
        f"{known['digits']:.0f} of two digits, {known['sampled']:.0f} shuffled; {known['bytes']:.1f} bytes from memory"
    )
    results: list[dict] = [{"variant": native.variant(), "rates": known, "base": base}]
    for method in ("residual", "sketch"):
        plain, ours = cpu_model.models(method)
        ours.set_task("task1")
        held = {shape[:2]: stored(ours, shape[:2]) for shape in LAYERS}
        one = cpu_model.measure(cpu_model.cases(plain, ours, 1, 1), seconds / 2, time.thread_time)
        print(f"\n{method}\n{'forward':<12} rows  least  and calls  measured  wanted  most of it is")
        for rows, limit in cpu_model.LIMITS.items():
            times = cpu_model.measure(cpu_model.cases(plain, ours, rows, TOKENS), seconds, time.thread_time)
            own = times["plain"]["least"]
            for name, tasks in (("set_task", 1), ("tasks=[...]", min(rows, cpu_model.TASKS))):
                spent: dict[str, float] = {}
                for m, n, layers in LAYERS:
                    rank, stride = held[m, n]
                    whole = name == "set_task" and rows * TOKENS >= rules.whole_from(m, n, stride is not None)
                    need = least(counts(m, n, rank, stride, rows * TOKENS, tasks, whole), known)
                    for what, nanoseconds in need.items():
                        spent[what] = spent.get(what, 0) + layers * nanoseconds / 1e6
                bound, ratio = 1 + sum(spent.values()) / own, times[name]["least"] / own
                spent["calls"] = one[name]["least"] - one["plain"]["least"]
                called, binds = 1 + sum(spent.values()) / own, max(spent, key=lambda what: spent[what])
                case = {"method": method, "rows": rows, "forward": name, "least": bound, "calls": called}
                results.append(case | {"measured": ratio, "wanted": limit, "spent": spent})
                print(
                    f"{name:<12} {rows:>4} {bound:>6.2f} {called:>10.2f} {ratio:>9.2f} {limit:>7.2f}  {binds}",
                    flush=True,
                )
    return results


SETS = {"avx512vbmi": "AVX-512 VNNI", "avx2": "AVX2"}
KINDS = {"residual": "components", "sketch": "sketches"}


def markdown(folder: Path) -> str:
    """The page's table of a machine's results with both instruction sets."""
    found = [json.loads((folder / f"roofline-{variant}.json").read_text())[1:] for variant in SETS]
    lines = ["| | wanted | " + " | ".join(f"{name}: measured | least | and calls" for name in SETS.values()) + " |"]
    lines.append("| --- " * (2 + 3 * len(SETS)) + "|")
    for cases in zip(*found):
        rows, name = cases[0]["rows"], cases[0]["forward"]
        how = "one task" if name == "set_task" else "by `tasks=`" if rows == 1 else "another task in each row"
        numbers = [cases[0]["wanted"], *(case[key] for case in cases for key in ("measured", "least", "calls"))]
        texts = [f"{KINDS[cases[0]['method']]}, batch {rows}, {how}", *(f"{number:.2f}" for number in numbers)]
        lines.append(f"| {' | '.join(texts)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=4.0, help="for each batch size and kind")
    parser.add_argument("--out", type=Path, help="folder for roofline-INSTRUCTIONSET.json")
    parser.add_argument("--table", type=Path, help="print the table of the results in this folder, measure nothing")
    options = parser.parse_args()
    if options.table is not None:
        print(markdown(options.table))
        return
    torch.set_num_threads(1)
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
    with torch.inference_mode():
        results = run(options.seconds)
    if options.out is not None:
        write_text(options.out / f"roofline-{native.variant()}.json", json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
