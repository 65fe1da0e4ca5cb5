"""A whole encoder of MiniLM-L6's shape (22.7 M parameters, random weights) with eight tasks of 1 % each, on the CPU.

    python -m benchmarks.kernels.cpu_model [--method sketch] [--seconds S] [--tokens N] [--profile CASE] [--busy]
                                           [--competing N] [--out FOLDER]

Plain model and DTSModel take turns in one process; ratios are of medians.  `benchmarks.kernels.cpu` runs it too.
--busy, on a machine that other programs use: one thread, its own processor time, and the least of all turns.
--competing: the same quiet and beside N processes that do nothing but compute: what each model loses to them, in means.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

from dts.adapter import Entry
from dts.codec import Factors
from dts.codec.sketch import split
from dts.files import write_text
from dts.nn import DTSModel
from dts_kernels import PackedFactors, Samples, pack
from dts_kernels.cpu import native
from dts_kernels.samples import groups_of

TASKS, BUDGET, TOUCHED = 8, 0.01, 2000  # TOUCHED: rows of the vocabulary that a fine-tune changes
LIMITS = {1: 1.20, 32: 1.15}  # of each batch, as a multiple of the plain model, one task and mixed rows


def encoder():
    """BERT of MiniLM-L6's shape, or None where transformers is not installed."""
    try:
        import transformers
    except ImportError:
        return None
    config = transformers.BertConfig(
        vocab_size=30522, hidden_size=384, intermediate_size=1536, num_hidden_layers=6, num_attention_heads=12
    )
    return transformers.BertModel(config).eval()


def random_task(model: torch.nn.Module, seed: int, method: str = "residual") -> dict[str, Entry]:
    """Entries that take BUDGET of the model in fp32: raw vectors, and one rank for all matrices, or (method "sketch")
    fewer components and a sample in the bytes of that rank."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    matrices = {name: shape for name, shape in shapes.items() if len(shape) == 2}
    rows = {name: torch.arange(min(shape[0], TOUCHED)) for name, shape in matrices.items() if "embeddings" in name}
    raw = 4 * sum(shape[0] for shape in shapes.values() if len(shape) == 1)
    left = 4 * BUDGET * sum(p.numel() for p in model.parameters()) - raw
    sides = sum(len(rows[name]) + shape[1] if name in rows else sum(shape) for name, shape in matrices.items())
    rank = int(left / (sides / 4 + 4 * len(matrices)))
    entries = {}
    for name, shape in shapes.items():
        if len(shape) == 1:
            entries[name] = Entry(name, name, shape, "delta", tensor=0.01 * torch.randn(shape, generator=generator))
            continue
        sizes = (len(rows[name]), shape[1]) if name in rows else shape
        small, stride = min(rank, *sizes), None
        if method == "sketch":
            small, stride = split(small, sizes)
        codes = [torch.randint(0, 4, (size, small), generator=generator, dtype=torch.uint8) for size in sizes]
        packed = PackedFactors(pack(codes[0]), pack(codes[1]), 1e-3 * torch.rand(small, generator=generator))
        touched = rows.get(name) if sizes != shape else None
        samples = ()
        if stride is not None:
            drawn = torch.randint(0, 4, (sizes[0], groups_of(sizes[1], stride)), generator=generator, dtype=torch.uint8)
            samples = (Samples(pack(drawn), 1e-4 * stride, stride, seed, sizes),)
        factors = Factors((packed, *samples), shape, touched, None, 1.0, 0.1)
        entries[name] = Entry(name, name, shape, "factors", factors=factors)
    return entries


def models(method: str = "residual"):
    """(the plain model, a DTSModel of the same weights with TASKS tasks)."""
    torch.manual_seed(0)
    plain, base = encoder(), encoder()
    base.load_state_dict(plain.state_dict())
    ours = DTSModel(base)
    for i in range(TASKS):
        ours.load_task(f"task{i}", random_task(plain, i, method))
    return plain, ours


def cases(plain, ours, rows: int, tokens: int) -> dict:
    """name -> forward of one batch; the mixed one has another task in each row (one row: a call with ``tasks=``)."""
    batch = {"input_ids": torch.randint(0, TOUCHED, (rows, tokens), generator=torch.Generator().manual_seed(1))}
    mixed = [f"task{i % TASKS}" for i in range(rows)]
    return {
        "plain": lambda: plain(**batch),
        "set_task": lambda: ours(**batch),
        "tasks=[...]": lambda: ours(**batch, tasks=mixed),
    }


def measure(functions: dict, seconds: float, clock=time.perf_counter) -> dict[str, dict]:
    """Milliseconds: median, least, p10, p90, the functions taking turns until the time is over."""
    times = {name: [] for name in functions}
    for function in [*functions.values()] * 3:
        function()
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times["plain"]) < 5:
        for name, function in functions.items():
            start = clock()
            function()
            times[name].append((clock() - start) * 1e3)
    return {
        name: {
            "median": statistics.median(t),
            "mean": statistics.fmean(t),
            "least": min(t),
            "p10": sorted(t)[len(t) // 10],
            "p90": sorted(t)[-1 - len(t) // 10],
            "turns": len(t),
        }
        for name, t in times.items()
    }


def right(plain, ours, method: str = "residual") -> bool:
    """Whether a task's outputs are those of its merged model, for rows alone and together."""
    batch = torch.randint(0, TOUCHED, (3, 16))
    merged = encoder()
    merged.load_state_dict(plain.state_dict())
    merged = DTSModel(merged)
    merged.load_task("task1", random_task(plain, 1, method))
    want = merged.merge_and_unload("task1")(batch).last_hidden_state
    ours.set_task("task1")
    alone = ours(batch).last_hidden_state
    mixed = ours(batch, tasks=["task1", "task0", "task1"]).last_hidden_state
    worst = max((alone - want).abs().max().item(), (mixed[::2] - want[::2]).abs().max().item())
    return worst < 1e-2 * want.abs().max().item()


def run(seconds: float, tokens: int = 32, method: str = "residual", busy: bool = False) -> list[dict]:
    """Print and return a result for each batch size; none where the model is wrong or transformers is missing.

    busy: the least processor time of one thread instead of the median of the time that passed.
    """
    if encoder() is None:
        print("no whole model: transformers is not installed (the 'hf' extra)")
        return []
    plain, ours = models(method)
    if not right(plain, ours, method):
        print("WRONG RESULT of the whole model: not timed")
        return []
    ours.set_task("task1")
    adapter = ours.status()["nbytes"] / TASKS / sum(4 * p.numel() for p in plain.parameters())
    print(
        f"\nMiniLM-L6's shape, {TASKS} tasks of {adapter:.1%}, {tokens} tokens a row, "
        f"{method}, fp32, {native.variant() or 'PyTorch alone'}"
    )
    print(f"{'rows':>5} {'forward':<12} {'ms':>9} [p10, p90]         / plain")
    results, taken = [], "least" if busy else "median"
    about = {"tokens": tokens, "tasks": TASKS, "method": method, "variant": native.variant(), "taken": taken}
    for rows in LIMITS:
        times = measure(cases(plain, ours, rows, tokens), seconds, time.thread_time if busy else time.perf_counter)
        ratio = {name: t[taken] / times["plain"][taken] for name, t in times.items()}
        limit = LIMITS[rows]
        results.append({"rows": rows, **about, "times": times, "ratio": ratio, "limit": limit})
        for name, t in times.items():
            verdict = "" if name == "plain" else f"  target {limit}: {'met' if ratio[name] <= limit else 'MISSED'}"
            span = f"[{t['p10']:.2f}, {t['p90']:.2f}]".ljust(18)
            print(f"{rows:>5} {name:<12} {t[taken]:>9.2f} {span} {ratio[name]:>8.2f}{verdict}", flush=True)
    return results


def compete(seconds: float, processes: int, tokens: int = 32, method: str = "residual") -> list[dict]:
    """Print and return, a batch size each, the mean milliseconds quiet and beside ``processes`` busy loops."""
    plain, ours = models(method)
    ours.set_task("task1")
    about = {"tokens": tokens, "tasks": TASKS, "method": method, "variant": native.variant(), "competing": processes}
    print(f"\nMiniLM-L6's shape, {method}, fp32, {native.variant()}, {torch.get_num_threads()} threads, means")
    print(
        f"{'rows':>5} {'forward':<12} {'ms quiet':>9} {'beside ' + str(processes):>9} {'slower':>7}  slower / plain's"
    )
    results = []
    for rows in LIMITS:
        functions = cases(plain, ours, rows, tokens)
        quiet = measure(functions, seconds)
        busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(processes)]
        try:
            loaded = measure(functions, 2 * seconds)
        finally:
            for process in busy:
                process.kill()
                process.wait()
        slower = {name: loaded[name]["mean"] / quiet[name]["mean"] for name in functions}
        results.append({"rows": rows, **about, "quiet": quiet, "loaded": loaded, "slower": slower})
        for name in functions:
            print(
                f"{rows:>5} {name:<12} {quiet[name]['mean']:>9.2f} {loaded[name]['mean']:>9.2f} {slower[name]:>7.2f} "
                f"{slower[name] / slower['plain']:>8.2f}",
                flush=True,
            )
    return results


def profile(name: str, rows: int, tokens: int, method: str = "residual") -> None:
    """Where Python's time goes in one case."""
    import cProfile
    import pstats

    plain, ours = models(method)
    ours.set_task("task1")
    function = cases(plain, ours, rows, tokens)[name]
    for _ in range(5):
        function()
    profiler = cProfile.Profile()
    profiler.runcall(lambda: [function() for _ in range(50)])
    pstats.Stats(profiler).sort_stats("tottime").print_stats(30)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", choices=["residual", "sketch"], default="residual")
    parser.add_argument("--seconds", type=float, default=6.0, help="for each batch size")
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--profile", choices=["plain", "set_task", "tasks=[...]"], help="show where Python's time goes")
    parser.add_argument("--rows", type=int, default=1, help="of --profile")
    parser.add_argument("--busy", action="store_true", help="one thread, its processor time, the least of all turns")
    parser.add_argument("--competing", type=int, default=0, metavar="N", help="busy processes, one a core, say")
    parser.add_argument("--out", type=Path, help="folder for cpu_model-METHOD-INSTRUCTIONSET.json (cpu_competing-...)")
    options = parser.parse_args()
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
    if options.busy:
        torch.set_num_threads(1)
    with torch.inference_mode():
        if options.profile:
            profile(options.profile, options.rows, options.tokens, options.method)
        else:
            if options.competing:
                results = compete(options.seconds, options.competing, options.tokens, options.method)
            else:
                results = run(options.seconds, options.tokens, options.method, options.busy)
            if options.out is not None:
                what = "competing" if options.competing else "model"
                name = f"cpu_{what}-{options.method}-{native.variant() or 'pytorch'}.json"
                write_text(
                    options.out / name, json.dumps({"threads": torch.get_num_threads(), "results": results}, indent=1)
                )


if __name__ == "__main__":
    main()
