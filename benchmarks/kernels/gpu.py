"""The packed products beside their alternatives on a CUDA device, in one run, as a model pays for them.

    python -m benchmarks.kernels.gpu [--seconds 170] [--out benchmarks/results]

A case is several layers of one shape, each with weights and tasks of its own (some 300 MB together, so that caches are
cold), captured one after another in one CUDA graph; times are a replay's over the number of layers.  One layer between
two events would add the same 5 us to both sides and hide the difference.  Correctness comes first and in the same run:
a case whose result is wrong gets no time.  Writes kernels.json and kernels.png to OUT/<gpu>/ after every case.  Ratios
are to the base product alone with as many rows.
"""

import argparse
import json
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch

import dts_kernels as kernels
from dts.codec.sketch import split
from dts.files import write_text
from dts_kernels import reference
from dts_kernels.gpu.config import slug
from dts_kernels.gpu.tune import random_factors, rotated_milliseconds
from dts_kernels.samples import dense, groups_of

TOLERANCE = 1e-2  # bf16, RMS ratio to float64
COLD, ROOM = 300 << 20, 6 << 30  # bytes of weights that leave caches cold; of tasks, or of one peer, that fit
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
        (0.05, 16, "distinct"),
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


def layer_count(case: Case) -> int:
    """Layers of a case: enough to be cold, few enough to fit."""
    tasks = len(set(case.entries))
    weights = 2 * case.out_features * case.in_features
    packed = tasks * (case.out_features + case.in_features) * case.rank // 4
    return max(2, min(12, COLD // weights, ROOM // max(packed, 1)))


class Layers:
    """Layers of one shape with a base weight and the same number of random tasks each, and what runs on all of them."""

    def __init__(self, case: Case, device: str, dtype=torch.bfloat16):
        self.case, self.device = case, device
        self.m, self.n, self.tasks = case.out_features, case.in_features, sorted(set(case.entries))
        self.count = layer_count(case)
        make = partial(torch.randn, device=device, dtype=dtype)
        self.x = make(case.rows, self.n)
        self.weights = [make(self.m, self.n) for _ in range(self.count)]
        self.routing = kernels.Routing.of(case.entries, device)
        of_row = case.entries * case.rows if len(case.entries) == 1 else case.entries
        self.rows_of = {t: torch.tensor([i for i, s in enumerate(of_row) if s == t], device=device) for t in self.tasks}
        self.make = make

    def bank(self, rank: int, layer: int) -> kernels.Bank:
        made = kernels.Bank(self.n, self.m, self.device)
        made.reserve(max(self.tasks) + 1, rank)
        for slot in self.tasks:
            made.add(slot, random_factors(self.m, self.n, rank, layer * 1000 + slot, self.device))
        return made

    def samples(self, stride: int, layer: int) -> kernels.SampleBank:
        made = kernels.SampleBank(self.n, self.m, self.device)
        for slot in self.tasks:
            codes = torch.randint(4, (self.m, groups_of(self.n, stride)), dtype=torch.uint8, device=self.device)
            seed = layer * 1000 + slot
            made.add(slot, (kernels.Samples(kernels.pack(codes), 1e-4 * stride, stride, seed, (self.m, self.n)),))
        return made

    def wanted(self, bank: kernels.Bank, samples: kernels.SampleBank | None = None) -> torch.Tensor:
        """The first layer's product in float64."""
        out = self.x.double() @ self.weights[0].double().T
        for slot, rows in self.rows_of.items():
            delta = reference.reconstruct(bank.factors(slot), torch.float64)
            if samples is not None:
                delta += dense(samples.samples(slot)[0], torch.float64)
            out[rows] += self.x[rows].double() @ delta.T
        return out


def methods(case: Case, device: str, dtype=torch.bfloat16) -> Iterator[tuple[str, list, int, torch.Tensor | None]]:
    """(name, what to run a layer, weight bytes that a layer reads, the first layer's product in float64), one after
    another: what one needs goes before the next.  No product where the method is none of ours."""
    layers = Layers(case, device, dtype)
    x, weights, routing, tasks, m, n = layers.x, layers.weights, layers.routing, layers.tasks, layers.m, layers.n
    linear, base = torch.nn.functional.linear, 2 * layers.m * layers.n
    yield "base alone", [partial(linear, x, w) for w in weights], base, None

    banks = [layers.bank(case.rank, i) for i in range(layers.count)]
    packed = len(tasks) * banks[0].factors(tasks[0]).nbytes
    runs = [partial(kernels.linear, x, w, None, bank, routing) for w, bank in zip(weights, banks)]
    yield "packed", runs, base + packed, layers.wanted(banks[0])
    del banks, runs

    rank, stride = split(case.rank, (m, n))
    if stride is not None:
        pairs = [(layers.bank(rank, i), layers.samples(stride, i)) for i in range(layers.count)]

        def product(w, bank, samples):
            finish = kernels.start_samples(x, samples, routing)
            y = kernels.linear(x, w, None, bank, routing)
            return kernels.add_samples(x, y, samples, routing) if finish is None else finish(y)

        size = len(tasks) * (pairs[0][0].factors(tasks[0]).nbytes + pairs[0][1].samples(tasks[0])[0].nbytes)
        runs = [partial(product, w, *pair) for w, pair in zip(weights, pairs)]
        yield "sketch, equal bytes", runs, base + size, layers.wanted(*pairs[0])
        y = linear(x, weights[0])
        runs = [partial(kernels.add_samples, x, y, samples, routing) for _, samples in pairs]
        yield "its sample alone", runs, len(tasks) * pairs[0][1].samples(tasks[0])[0].nbytes, None
        del pairs, runs

    if len(tasks) == 1:
        yield "merged dense", [partial(linear, x, w) for w in weights], base, None
    else:  # dense copies of at most 16 tasks are kept; with more their times are that many products of one row block
        copies = [layers.make(m, n) for _ in range(min(len(tasks), 16))]
        blocks = [x[rows] for rows in layers.rows_of.values()]
        yield (
            "dense models",
            [lambda: [linear(b, copies[i % len(copies)]) for i, b in enumerate(blocks)]],
            (base * len(tasks)),
            None,
        )
        del copies

    for name, low in (("LoRA, equal rank", case.rank), ("LoRA, equal bytes", max(1, case.rank // 8))):
        copies = 1 if len(tasks) == 1 else case.rows  # grouped: a batched product, of the factors of every row
        if 2 * copies * low * (m + n) * layers.count > ROOM:
            continue
        if len(tasks) == 1:
            runs = [partial(_lora, x, w, layers.make(n, low), layers.make(low, m)) for w in weights]
        else:
            runs = [partial(_grouped, x, w, layers.make(copies, n, low), layers.make(copies, low, m)) for w in weights]
        yield name, runs, base + len(tasks) * 2 * low * (m + n), None
        del runs


def _lora(x, weight, a, b):
    return torch.addmm(torch.nn.functional.linear(x, weight), x @ a, b)


def _grouped(x, weight, a, b):
    return torch.nn.functional.linear(x, weight) + torch.bmm(torch.bmm(x[:, None], a), b)[:, 0]


def measure(case: Case, device: str, timer: Callable = rotated_milliseconds) -> list[Result]:
    """Raises AssertionError, before it is timed, where one of our products is wrong."""
    results = []
    for name, runs, size, wanted in methods(case, device):
        error = None
        if wanted is not None:
            error = ((runs[0]().double() - wanted).norm() / wanted.norm()).item()
            assert error <= TOLERANCE, f"{name} is wrong for {case}: error {error:.2e}"
        results.append(Result(case, name, error, *summary(timer(runs)), size))
    return results


def copy_bandwidth(device: str, timer: Callable = rotated_milliseconds, size: int = 1 << 30) -> float:
    """Bytes a second that a copy of so many bytes reads and writes."""
    source = torch.empty(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.numel() / (statistics.median(timer([lambda: target.copy_(source)])) / 1e3)


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


def main(arguments: list[str] | None = None, device: str = "cuda", timer: Callable = rotated_milliseconds) -> int:
    """device, timer: of a rehearsal, so that nothing is found out on a card that a test could have told."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=170, help="start no case after so long")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args(arguments)
    if device == "cuda" and not torch.cuda.is_available():
        print("not measured: this needs a CUDA device", file=sys.stderr)
        return 1
    started, results, failed = time.monotonic(), [], []
    real = device == "cuda"
    copy = copy_bandwidth(device, timer, 1 << (30 if real else 10))
    name = torch.cuda.get_device_name() if real else f"rehearsal on {device}"
    folder = options.out / slug(name)
    folder.mkdir(parents=True, exist_ok=True)
    for case in cases():
        if time.monotonic() - started > options.seconds:
            failed.append(f"{case}: out of time")
            continue
        try:
            found = measure(case, device, timer)
        except (AssertionError, RuntimeError) as failure:  # wrong, out of memory, not to be captured
            failed.append(f"{case}: {failure}"[:400])
            print(failed[-1], file=sys.stderr)
            continue
        results += found
        for r in found:
            print(
                f"{case.out_features}x{case.in_features} r={case.rank_fraction} rows={case.rows} {case.workload:9} "
                f"{r.method:22} {r.median_us:9.1f} us {r.median_us / found[0].median_us:6.2f}"
            )
        _write(folder, name, copy, results, failed)
    _write(folder, name, copy, results, failed)
    plot(rows_of_table(results, copy), folder / "kernels.png")
    print(folder / "kernels.json")
    return 1 if any("is wrong" in f for f in failed) else 0


def _write(folder: Path, name: str, copy: float, results: list[Result], failed: list[str]) -> None:
    """What there is so far: a run that is cut off has measured something."""
    found = {"gpu": name, "torch": torch.__version__, "copy_bytes_a_second": copy, "not_measured": failed}
    text = json.dumps(found | {"rows": rows_of_table(results, copy)}, indent=1)
    write_text(folder / "kernels.json", text + "\n")


if __name__ == "__main__":
    sys.exit(main())
