"""The packed products beside their alternatives on a CUDA device, in one run, with cold caches and CUDA graphs.

    python -m benchmarks.kernels.gpu [--seconds 240] [--out benchmarks/results]

Correctness comes first and in the same run: a case whose result is wrong gets no time.  Writes kernels.json and
kernels.png to OUT/<gpu>/.  Ratios are to the base product alone with as many rows.
"""

import argparse
import json
import random
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

import dts_kernels as kernels
from dts.codec.sketch import split
from dts.files import write_text
from dts_kernels import reference
from dts_kernels.gpu.config import file_name
from dts_kernels.gpu.tune import milliseconds, random_factors
from dts_kernels.samples import dense, groups_of

TOLERANCE = 1e-2  # bf16, RMS ratio to float64
WORKLOADS = ("one", "distinct", "uniform", "zipf")


@dataclass(frozen=True)
class Case:
    """One layer and batch.  rank_fraction: of min(out_features, in_features)."""

    out_features: int
    in_features: int
    rank_fraction: float
    rows: int
    workload: str

    @property
    def rank(self) -> int:
        return max(1, int(self.rank_fraction * min(self.out_features, self.in_features)))

    @property
    def entries(self) -> list[int]:
        """A task a row (one entry for "one")."""
        draw = random.Random(0)
        if self.workload == "one":
            return [0]
        if self.workload == "distinct":
            return list(range(self.rows))
        tasks = range(max(1, self.rows // 4))
        weights = [1.0 if self.workload == "uniform" else (t + 1) ** -1.5 for t in tasks]
        return draw.choices(tasks, weights, k=self.rows)


@dataclass(frozen=True)
class Result:
    case: Case
    method: str
    error: float | None  # RMS ratio to float64; None where the method is no approximation of the same product
    median_us: float
    p10_us: float
    p90_us: float
    read_bytes: int  # of weights, each once


def cases() -> list[Case]:
    """Most telling first: a run that is short of time drops the last."""
    targets = [
        (0.3, 1, "one"),
        (0.3, 16, "one"),
        (0.3, 16, "distinct"),
        (0.3, 64, "distinct"),
        (0.3, 4096, "one"),
        (0.05, 1, "one"),
    ]
    found = [Case(4096, 4096, *target) for target in targets]
    for m, n in ((4096, 4096), (14336, 4096), (4096, 14336), (768, 768)):
        for fraction in (0.3, 0.1, 0.05):
            for rows in (1, 4, 16, 64, 512, 4096):
                found += [Case(m, n, fraction, rows, w) for w in WORKLOADS if w == "one" or 1 < rows <= 64]
    return list(dict.fromkeys(found))


def summary(times_ms: list[float]) -> tuple[float, float, float]:
    """(median, p10, p90) in microseconds."""
    ordered = sorted(times_ms)
    at = lambda q: 1e3 * ordered[min(len(ordered) - 1, int(q * len(ordered)))]  # noqa: E731
    return 1e3 * statistics.median(ordered), at(0.1), at(0.9)


def methods(case: Case, device: str, dtype=torch.bfloat16) -> dict[str, tuple]:
    """name -> (run, weight bytes read, the product in float64 or None where it is no product of ours)."""
    m, n, k = case.out_features, case.in_features, case.rank
    entries, tasks = case.entries, sorted(set(case.entries))
    made = kernels.Bank(n, m, device)
    for slot in tasks:
        made.add(slot, random_factors(m, n, k, slot, device))
    routing = kernels.Routing.of(entries, device)
    x, weight = torch.randn(case.rows, n, device=device, dtype=dtype), torch.randn(m, n, device=device, dtype=dtype)
    of_row = entries * case.rows if len(entries) == 1 else entries
    rows_of = {slot: torch.tensor([i for i, s in enumerate(of_row) if s == slot], device=device) for slot in tasks}

    wanted = x.double() @ weight.double().T
    for slot in tasks:
        delta = reference.reconstruct(made.factors(slot), torch.float64)
        wanted[rows_of[slot]] += x[rows_of[slot]].double() @ delta.T

    base, packed = 2 * m * n, len(tasks) * made.factors(tasks[0]).nbytes
    linear = torch.nn.functional.linear
    found = {
        "base alone": (lambda: linear(x, weight), base, None),
        "packed": (lambda: kernels.linear(x, weight, None, made, routing), base + packed, wanted),
    }
    found |= sketch(case, device, x, weight, routing, rows_of)
    # dense copies of at most 16 tasks are kept; with more their times are that many products of one row block
    copies = [weight.clone() for _ in range(min(len(tasks), 16))]
    blocks = [x[rows_of[slot]] for slot in tasks]
    found["merged dense" if len(tasks) == 1 else "dense models"] = (
        lambda: [linear(b, copies[i % len(copies)]) for i, b in enumerate(blocks)],
        base * len(tasks),
        None,
    )
    for name, rank in (("fp16 low rank, equal rank", k), ("fp16 low rank, equal bytes", max(1, k // 8))):
        a, b = (
            torch.randn(s, device=device, dtype=dtype)
            for s in ((min(len(tasks), 16), rank, n), (min(len(tasks), 16), m, rank))
        )

        def low_rank(a=a, b=b):
            return linear(x, weight), [
                linear(linear(block, a[i % len(a)]), b[i % len(b)]) for i, block in enumerate(blocks)
            ]

        found[name] = (low_rank, base + len(tasks) * 2 * rank * (m + n), None)
    return found


def sketch(
    case: Case,
    device: str,
    x: torch.Tensor,
    weight: torch.Tensor,
    routing: kernels.Routing,
    rows_of: dict[int, torch.Tensor],
) -> dict[str, tuple]:
    """The method of that name in the bytes of the case's components: fewer of them, and a sample."""
    m, n = weight.shape
    rank, stride = split(case.rank, (m, n))
    if stride is None:
        return {}
    made, sampled = kernels.Bank(n, m, device), kernels.SampleBank(n, m, device)
    wanted = x.double() @ weight.double().T
    for slot, rows in rows_of.items():
        made.add(slot, random_factors(m, n, rank, slot, device))
        codes = torch.randint(4, (m, groups_of(n, stride)), dtype=torch.uint8, device=device)
        sampled.add(slot, (kernels.Samples(kernels.pack(codes), 1e-4 * stride, stride, slot, (m, n)),))
        delta = reference.reconstruct(made.factors(slot), torch.float64)
        wanted[rows] += x[rows].double() @ (delta + dense(sampled.samples(slot)[0], torch.float64)).T
    size = sum(made.factors(slot).nbytes + sampled.samples(slot)[0].nbytes for slot in rows_of)

    def product():
        return kernels.add_samples(x, kernels.linear(x, weight, None, made, routing), sampled, routing)

    return {"sketch, equal bytes": (product, 2 * m * n + size, wanted)}


def measure(case: Case, device: str, timer: Callable = milliseconds) -> list[Result]:
    """Raises AssertionError, before anything is timed, where the packed product is wrong."""
    runs = methods(case, device)
    results, errors = [], {}
    for name, (run, _, wanted) in runs.items():
        if wanted is not None:
            errors[name] = ((run().double() - wanted).norm() / wanted.norm()).item()
            assert errors[name] <= TOLERANCE, f"{name} is wrong for {case}: error {errors[name]:.2e}"
    for name, (run, size, _) in runs.items():
        results.append(Result(case, name, errors.get(name), *summary(timer(run)), size))
    return results


def copy_bandwidth(timer: Callable = milliseconds) -> float:
    """Bytes a second that a copy of 1 GiB reads and writes."""
    source = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.numel() / (statistics.median(timer(lambda: target.copy_(source))) / 1e3)


def rows_of_table(results: list[Result], copy: float) -> list[dict]:
    """Flat rows with the ratio to the base alone and the share of the measured copy rate."""
    base = {r.case: r.median_us for r in results if r.method == "base alone"}
    return [
        asdict(r.case)
        | {
            "method": r.method,
            "error": r.error,
            "median_us": r.median_us,
            "p10_us": r.p10_us,
            "p90_us": r.p90_us,
            "ratio_to_base": r.median_us / base[r.case],
            "gigabytes_a_second": r.read_bytes / r.median_us / 1e3,
            "share_of_copy": r.read_bytes / (r.median_us / 1e6) / copy,
        }
        for r in results
    ]


def plot(rows: list[dict], path: Path) -> None:
    """Ratio to the base over rows, 4096 x 4096, r = 0.3, a panel a workload."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, len(WORKLOADS), figsize=(4 * len(WORKLOADS), 3.5), sharey=True)
    for panel, workload in zip(panels, WORKLOADS):
        chosen = [
            r
            for r in rows
            if r["workload"] == workload and r["rank_fraction"] == 0.3 and r["out_features"] == r["in_features"] == 4096
        ]
        for method in dict.fromkeys(r["method"] for r in chosen):
            line = sorted((r["rows"], r["ratio_to_base"]) for r in chosen if r["method"] == method)
            panel.loglog(*zip(*line), marker="o", label=method)
        panel.set(title=workload, xlabel="rows")
    panels[0].set_ylabel("time / base alone")
    panels[0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=240, help="start no case after so long")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("not measured: this needs a CUDA device", file=sys.stderr)
        return 1
    started, results, failed = time.monotonic(), [], []
    copy = copy_bandwidth()
    for case in cases():
        if time.monotonic() - started > options.seconds:
            failed.append(f"{case}: out of time")
            continue
        try:
            results += measure(case, "cuda")
        except (AssertionError, torch.cuda.OutOfMemoryError) as failure:
            failed.append(str(failure))
            print(failure, file=sys.stderr)
            continue
        for r in results[-7:]:
            if r.case == case:
                print(
                    f"{case.out_features}x{case.in_features} r={case.rank_fraction} rows={case.rows} "
                    f"{case.workload:9} {r.method:28} {r.median_us:9.1f} us"
                )
    name = torch.cuda.get_device_name()
    folder = options.out / file_name(name).removesuffix(".json")
    folder.mkdir(parents=True, exist_ok=True)
    rows = rows_of_table(results, copy)
    write_text(
        folder / "kernels.json",
        json.dumps(
            {
                "gpu": name,
                "torch": torch.__version__,
                "copy_bytes_a_second": copy,
                "not_measured": failed,
                "rows": rows,
            },
            indent=1,
        )
        + "\n",
    )
    plot(rows, folder / "kernels.png")
    print(folder / "kernels.json")
    return 1 if any("is wrong" in f for f in failed) else 0


if __name__ == "__main__":
    sys.exit(main())
