"""CPU products beside what else a user could run: a table, a JSON file and a plot.

    python -m benchmarks.kernels.cpu [--quick] [--crossover] [--out FOLDER]     (with --seconds 1: about 4 minutes)

Each line is one problem.  Its competitors take turns inside one process, so noise of the machine meets all of them;
times are medians with the 10th and 90th percentile, ratios are to `nn.Linear` in the same dtype.  Before each turn
other weights push the packed factors out of the caches.  A line is printed only if the product was right in this run.
"""

import argparse
import json
import statistics
import time
from datetime import UTC, datetime
from pathlib import Path

import torch
from torch.nn import functional

from benchmarks.kernels import cpu_model
from dts.cli.doctor import cpu_name
from dts.files import write_text
from dts_kernels import Bank, PackedFactors, Routing, delta_linear, dispatch, linear, reconstruct
from dts_kernels.contents import factors_of
from dts_kernels.cpu import native
from dts_kernels.paths import PATHS

SIZES = [(384, 384), (3072, 768), (4096, 1024), (4096, 4096), (11008, 4096)]
RANK_FRACTIONS = [0.05, 0.1, 0.3]
ROWS = [1, 4, 16, 64, 512]
TARGETS = {  # (m, n, r, rows, tasks, dtype) -> (largest ratio to nn.Linear, what is wanted)
    (4096, 4096, 0.3, 1, 1, "float32"): 1.20,
    (4096, 4096, 0.3, 1, 1, "bfloat16"): 1.40,
    (4096, 4096, 0.05, 1, 1, "float32"): 1.05,
    (4096, 4096, 0.05, 1, 1, "bfloat16"): 1.10,
    (4096, 4096, 0.3, 16, 16, "float32"): 2.0,
    (4096, 4096, 0.3, 512, 1, "float32"): 1.7,
}
QUICK = [(4096, 4096, r, rows, tasks, dtype) for m, n, r, rows, tasks, dtype in TARGETS] + [
    (384, 384, 0.05, 1, 1, "float32"),
    (384, 384, 0.05, 16, 1, "float32"),
]
FLUSH_BYTES = 64 << 20


def problems(quick: bool) -> list[tuple]:
    """Cells that tell something: all ranks at one row and at 4096 x 4096; else the largest; bf16 where a target is."""
    if quick:
        return QUICK
    every = [
        (m, n, r, rows, tasks, dtype)
        for m, n in SIZES
        for r in RANK_FRACTIONS
        for rows in ROWS
        for tasks in (1, 16)
        for dtype in ("float32", "bfloat16")
        if (tasks == 1 or rows == 16) and (m * n < 32 << 20 or rows < 512)
    ]
    return [
        p
        for p in every
        if p in TARGETS
        or p[5] == "float32"
        and (p[2] == 0.3 or p[3] == 1 or p[0] == p[1] == 4096 and p[2] == 0.05)
        or p[5] == "bfloat16"
        and p[0] == p[1] == 4096
        and p[2] == 0.3
    ]


def random_factors(m: int, n: int, rank: int) -> PackedFactors:
    u, v = (torch.randint(0, 256, (rows, (rank + 3) // 4), dtype=torch.uint8) for rows in (m, n))
    return PackedFactors(u, v, torch.rand(rank) / (m * n) ** 0.5)


class Competitors:
    """Functions of one problem, by name."""

    def __init__(self, m: int, n: int, r: float, rows: int, tasks: int, dtype: torch.dtype):
        rank = max(1, int(r * min(m, n)))
        self.bank = Bank(n, m)
        for slot in range(tasks):
            self.bank.add(slot, random_factors(m, n, rank))
        self.routing = Routing.of([0] if tasks == 1 else [i % tasks for i in range(rows)])
        self.x, self.weight = torch.randn(rows, n).to(dtype), (torch.randn(m, n) / n**0.5).to(dtype)
        # one low-rank pair stands for all tasks' where the time of a copy does not depend on its contents
        lora = [(torch.randn(rank, n).to(dtype), torch.randn(m, rank).to(dtype)) for _ in range(tasks)]
        dense = [self.weight.clone() for _ in range(tasks)] if tasks > 1 else None
        x, weight, bank, routing, each = self.x, self.weight, self.bank, self.routing, rows // tasks

        def low_rank():
            y = functional.linear(x, weight)
            for i, (a, b) in enumerate(lora):
                part = slice(i * each, (i + 1) * each)
                y[part] += functional.linear(functional.linear(x[part], a), b)
            return y

        def low_rank_alone():
            return functional.linear(functional.linear(x, lora[0][0]), lora[0][1])

        def fallback():
            return PATHS["linear"]["table"](x, weight, None, bank.operands(routing))

        self.functions = {
            "nn.Linear": lambda: functional.linear(x, weight),
            "dts": lambda: linear(x, weight, None, bank, routing),
            "lora": low_rank,
        }
        if rows <= 16:  # with more rows it is the library's products and a copy of the factors
            self.functions["fallback"] = fallback
        if tasks == 1:
            self.functions |= {"dts delta": lambda: delta_linear(x, bank, routing), "lora delta": low_rank_alone}
            peft = peft_layer(m, n, rank, self.weight)
            if peft is not None:
                self.functions["peft"] = lambda: peft(x)
        else:
            self.functions["dense models"] = lambda: torch.cat(
                [functional.linear(x[i * each : (i + 1) * each], w) for i, w in enumerate(dense)]
            )

    def right(self) -> bool:
        """Whether the delta of the first row agrees with its float64 definition."""
        factors, _ = factors_of(self.bank.packed, self.bank.table, self.bank.in_features, self.bank.out_features)
        slot = self.routing.slots[0, 0].item()
        gamma = torch.zeros(len(factors))
        gamma[slot] = 1
        bank = Bank(self.bank.in_features, self.bank.out_features)
        bank.add(0, factors[slot])
        want = self.x[:1].double() @ reconstruct(bank, {0: 1.0}, dtype=torch.float64).T
        got = delta_linear(self.x, self.bank, self.routing)[:1].double()
        return ((got - want).norm() / want.norm()).item() < (1e-2 if self.x.dtype == torch.bfloat16 else 3e-4)


def peft_layer(m: int, n: int, rank: int, weight: torch.Tensor):
    """PEFT's own LoRA layer, or None where it is not installed."""
    try:
        from peft.tuners.lora import LoraConfig
        from peft.tuners.lora.layer import Linear
    except ImportError:
        return None
    base = torch.nn.Linear(n, m, bias=False)
    base.weight.data = weight
    layer = Linear(
        base, "default", config=LoraConfig(r=rank, lora_alpha=rank, lora_dropout=0.0), r=rank, lora_alpha=rank
    )
    return layer.to(weight.dtype).eval()


def measure(functions: dict, seconds: float) -> dict[str, dict]:
    """Milliseconds of each function: median, p10, p90, turns taken one after another until the time is over."""
    flush = torch.zeros(FLUSH_BYTES // 4)
    times = {name: [] for name in functions}
    for function in functions.values():
        function()
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times["nn.Linear"]) < 5:
        for name, function in functions.items():
            flush.add_(1)
            start = time.perf_counter()
            function()
            times[name].append((time.perf_counter() - start) * 1e3)
    return {
        name: {
            "median": statistics.median(t),
            "p10": sorted(t)[len(t) // 10],
            "p90": sorted(t)[-1 - len(t) // 10],
            "turns": len(t),
        }
        for name, t in times.items()
    }


def run(problem: tuple, seconds: float) -> dict | None:
    m, n, r, rows, tasks, dtype = problem
    competitors = Competitors(m, n, r, rows, tasks, getattr(torch, dtype))
    if not competitors.right():
        print(f"WRONG RESULT for {problem}: not timed")
        return None
    dispatch.ran.clear()
    linear(competitors.x, competitors.weight, None, competitors.bank, competitors.routing)
    path = next(path for op, path in dispatch.ran if op == "linear")
    times = measure(competitors.functions, seconds)
    base = times["nn.Linear"]["median"]
    return {
        "m": m,
        "n": n,
        "r": r,
        "rank": competitors.bank.max_rank,
        "rows": rows,
        "tasks": tasks,
        "dtype": dtype,
        "path": path,
        "packed_bytes": competitors.bank.nbytes,
        "times": times,
        "target": TARGETS.get(problem),
        "ratio": {name: t["median"] / base for name, t in times.items()},
    }


def line(result: dict) -> str:
    shape = f"{result['m']}x{result['n']}"
    head = f"{shape:>11} {result['r']:<5}{result['rows']:>4} {result['tasks']:>3} {result['dtype'][:8]:<9}"
    base, ours = result["times"]["nn.Linear"], result["times"]["dts"]
    text = f"{head}{base['median']:8.3f} {ours['median']:8.3f} [{ours['p10']:.3f}, {ours['p90']:.3f}]".ljust(72)
    ratio = result["ratio"]
    text += f"{ratio['dts']:6.2f}"
    for name in ("lora", "peft", "dense models", "fallback"):
        text += f"{ratio[name]:8.2f}" if name in ratio else "       -"
    faster = ratio["lora delta"] / ratio["dts delta"] if "lora delta" in ratio else None
    text += f"{faster:9.1f}" if faster else "        -"
    if result["target"]:
        text += f"   target {result['target']:.2f}: {'met' if ratio['dts'] <= result['target'] else 'MISSED'}"
    return text + f"   {result['path']}"


HEADER = (
    f"{'size':>11} {'r':<5}{'rows':>4} {'T':>3} {'dtype':<9}{'base ms':>8} {'dts ms':>8} [p10, p90]".ljust(72)
    + f"{'dts':>6}{'lora':>8}{'peft':>8}{'dense':>8}{'fallbk':>8}{'delta/x':>9}"
)


def plot(results: list[dict], path: Path) -> None:
    try:
        import matplotlib
    except ImportError:
        print("no plot: matplotlib is not installed (the 'plot' extra)")
        return
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    chosen = [r for r in results if (r["m"], r["n"], r["tasks"], r["dtype"]) == (4096, 4096, 1, "float32")]
    figure, axes = plt.subplots(figsize=(7, 4))
    for fraction in sorted({r["r"] for r in chosen}):
        points = sorted((r["rows"], r["ratio"]["dts"], r["ratio"]["lora"]) for r in chosen if r["r"] == fraction)
        drawn = axes.plot([p[0] for p in points], [p[1] for p in points], "o-", label=f"DTS, r = {fraction}")
        axes.plot(
            [p[0] for p in points],
            [p[2] for p in points],
            "x--",
            color=drawn[0].get_color(),
            label=f"LoRA of the same rank, r = {fraction}",
        )
    axes.set(xscale="log", xlabel="rows", ylabel="time / nn.Linear", title=f"4096 x 4096, fp32, {cpu_name()}")
    axes.axhline(1, color="grey", linewidth=0.8)
    axes.legend()
    figure.savefig(path, dpi=120, bbox_inches="tight")


def crossover(seconds: float) -> None:
    """Rows from which unpacking for the library's products is faster: what `dts_kernels.cpu.rules` holds."""
    print(f"{'variant':>11} {'dtype':<9} {'rows':>5} {'native ms':>10} {'unpack ms':>10}")
    for dtype in (torch.float32, torch.bfloat16):
        for rows in (16, 32, 64, 128, 256, 512):
            c = Competitors(4096, 1024, 0.3, rows, 1, dtype)
            tasks = native.Tasks.of(c.bank.packed, c.bank.table)
            operands = c.bank.operands(c.routing)
            functions = {
                "nn.Linear": lambda x=c.x, held=operands: PATHS["delta_linear"]["unpack"](x, None, held, False)
            }
            for name in native.variants():
                functions[name] = lambda x=c.x, held=operands, t=tasks, name=name: native.delta_linear(
                    x, None, t, held.slots, held.weights, 4096, False, False, name
                )
            times = measure(functions, seconds)
            for name in native.variants():
                print(
                    f"{name:>11} {str(dtype)[6:]:<9} {rows:>5} {times[name]['median']:10.3f} "
                    f"{times['nn.Linear']['median']:10.3f}",
                    flush=True,
                )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="only the lines that have a target")
    parser.add_argument("--crossover", action="store_true", help="measure the crossover to unpacking instead")
    parser.add_argument("--seconds", type=float, default=1.5, help="for each line")
    parser.add_argument("--out", type=Path, default=None, help="default benchmarks/results/<cpu>")
    options = parser.parse_args()
    torch.manual_seed(0)
    with torch.inference_mode():
        if options.crossover:
            return crossover(options.seconds)
        print(
            f"{cpu_name()}, {torch.get_num_threads()} threads, {native.variant() or 'no compiled kernels'}, "
            f"torch {torch.__version__}\n{HEADER}"
        )
        try:
            import peft  # noqa: F401
        except ImportError:
            print("no column of PEFT's own layer: peft is not installed")
        results = []
        for problem in problems(options.quick):
            result = run(problem, options.seconds)
            if result:
                results.append(result)
                print(line(result), flush=True)
        whole = cpu_model.run(4 * options.seconds)
    folder = options.out or Path(__file__).parents[1] / "results" / cpu_name().lower().replace(" ", "-")
    folder.mkdir(parents=True, exist_ok=True)
    record = {
        "cpu": cpu_name(),
        "threads": torch.get_num_threads(),
        "variant": native.variant(),
        "torch": torch.__version__,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "results": results,
        "whole_model": whole,
    }
    name = "cpu-quick" if options.quick else "cpu"
    write_text(folder / f"{name}.json", json.dumps(record, indent=1) + "\n")
    plot(results, folder / f"{name}.png")
    print(f"\nwritten to {folder}")


if __name__ == "__main__":
    main()
