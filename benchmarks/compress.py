"""Time, memory and error of compression: single matrices, and whole models of a Llama's shapes from disk.

    python -m benchmarks.compress [--device cuda] [--shapes 4096x4096:.3 ...] [--parameters 1.1e9 7e9] [--budget .01]
                                  [--encoder [--method residual]] [--batches 1 8] [--seconds 170]
                                  [--out benchmarks/results] [--folder DIR]

Matrices (m x n : share of the rank) are random with a decaying spectrum, made on the device; each is encoded twice, and
the bytes of both compared, then once more with the device waited for around every phase, whose seconds are printed.
*modelled* is no measurement: the operations and bytes of the algorithm over the figures of an H100's data sheet.

A model's base has random weights, its fine-tune differs by such matrices; both are made on the device and written to a
folder that is removed at the end (four bytes a parameter), or held in memory where there is no room for it.  Their
pages are still in the system's cache when they are read.  Phases: what `dts.compress` does, on the host's clock.

--encoder: a pair of MiniLM-L6's shape in float32, compressed by one thread and by all of them: seconds, processor time,
and whether the bytes are the same.  Of it alone on a CPU:  --device cpu --shapes --parameters --encoder

Rows are printed and added to OUT/<device>/compress.jsonl as they are found.  A case that has not ended when the
seconds are over is broken off, and so said.
"""

import argparse
import hashlib
import importlib
import json
import platform
import shutil
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import dts
from benchmarks.kernels import cpu_model
from benchmarks.memory import layout
from dts.adapter import plans, run
from dts.checkpoint import write_safetensors
from dts.codec import alternations, many
from dts.codec.many import components
from dts_kernels.cpu import native
from dts_kernels.gpu.config import slug

MOVED = 0.01  # of the base's norm that a fine-tune is away from it
RANK = 256  # of the part of a difference whose spectrum decays
SHEET = {"fp32": 67e12, "fp64": 67e12, "bytes": 3.35e12, "launch": 4e-6}  # H100 SXM: products, memory, a launch
SHARE = 0.6  # of the sheet's figures that products are modelled to reach


class Late(RuntimeError):
    """The seconds are over."""


def difference(m: int, n: int, seed: int, device: torch.device) -> Tensor:
    """float32 [m, n] with mean square 1: singular values i^-1/2 up to RANK, and noise."""
    generator = torch.Generator(device).manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator, device=device)  # noqa: E731
    rank = min(RANK, m, n)
    scale = torch.arange(1, rank + 1, device=device) ** -0.5
    made = (draw(m, rank) * scale) @ draw(rank, n) / scale.norm()
    return made.add_(draw(m, n)).div_(2**0.5)


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_mb(device: torch.device) -> int | None:
    return torch.cuda.max_memory_allocated(device) // 10**6 if device.type == "cuda" else None


@contextmanager
def phases(functions: dict[str, tuple[Any, str]], device: torch.device | None) -> Iterator[dict[str, float]]:
    """Seconds within functions, given as phase: (owner, name), meanwhile; device: waited for around each."""
    seconds: dict[str, float] = defaultdict(float)
    with ExitStack() as undo:
        for phase, (owner, name) in functions.items():
            real = getattr(owner, name)

            def timed(*args, phase=phase, real=real, **kwargs):
                if device is not None:
                    wait(device)
                start = time.perf_counter()
                try:
                    return real(*args, **kwargs)
                finally:
                    if device is not None:
                        wait(device)
                    seconds[phase] += time.perf_counter() - start

            setattr(owner, name, timed)
            undo.callback(setattr, owner, name, real)
        yield seconds


def modelled(m: int, n: int, rank: int, count: int) -> dict[str, float]:
    """Floating point operations, launches, and the seconds that follow from the data sheet of an H100."""
    steps, width = alternations.affordable(m, n, rank), rank + 16
    products = 4 * m * n * rank + 4 * rank**2 * (m + n)  # of an alternation: moments, sweeps, Gram matrices
    begin = 10 * m * n * width
    wide = 8 * (m + n) * width**2 + 12 * width**3 + 2 * steps * rank**3 / 3  # bases, decomposition, least squares
    launches = 2 * steps * (2 * -(-rank // 64) + 40) + 160
    fp32, fp64 = count * (steps * products + begin), count * wide
    seconds = (fp32 / SHEET["fp32"] + fp64 / SHEET["fp64"]) / SHARE + launches * SHEET["launch"]
    moved = count * 4 * steps * (2 * m * n + 12 * rank * (m + n))
    return {
        "tflop": round((fp32 + fp64) / 1e12, 2),
        "launches": launches,
        "seconds": round(max(seconds, moved / SHEET["bytes"]), 3),
    }


def matrix_row(m: int, n: int, fraction: float, count: int, device: torch.device) -> dict:
    """``count`` matrices of one shape at once."""
    rank = max(1, int(fraction * min(m, n)))
    deltas = torch.stack([difference(m, n, i, device) for i in range(count)])
    deltas /= deltas.abs().amax()
    run_once = lambda: many.encode(deltas, [rank] * count)  # noqa: E731
    if device.type == "cuda":
        many.encode(deltas[:, :128, :128].contiguous(), [8] * count)  # kernels are compiled, handles made
        torch.cuda.reset_peak_memory_stats(device)
    made, seconds = [], []
    for _ in range(2):
        wait(device)
        start = time.perf_counter()
        made.append(run_once())
        seconds.append(time.perf_counter() - start)
    same = all(torch.equal(a.u, b.u) and torch.equal(a.v, b.v) and torch.equal(a.sigma, b.sigma) and e == f
               for (a, e), (b, f) in zip(*made))  # fmt: skip
    peak = peak_mb(device)
    inner = {"start": (components, "start"), "sweeps": (components, "sweep"), "sigma": (components, "fit")}
    with phases(inner, device) as found:
        run_once()
    errors = [error for _, error in made[0]]
    return {
        "what": "matrices",
        "shape": [m, n],
        "rank": rank,
        "count": count,
        "seconds": [round(s, 4) for s in seconds],
        "phases": {name: round(s, 4) for name, s in found.items()},
        "squared_error": round(sum(errors) / count, 6),
        "same_bytes": same,
        "peak_device_mb": peak,
        "modelled_h100": modelled(m, n, rank, count),
    }


def make_pair(parameters: int, device: torch.device, folder: Path | None, deadline: float) -> tuple[Any, Any, int]:
    """(base, fine-tune, parameters): folders, or tensors in memory.  Raises Late."""
    shapes = layout(parameters)

    def load(name: str, tuned: bool) -> Tensor:
        if time.monotonic() > deadline:
            raise Late("broken off while the models were made")
        shape, seed = shapes[name][1], sum(name.encode())
        value = torch.randn(shape, generator=torch.Generator(device).manual_seed(seed), device=device).mul_(0.02)
        if tuned:
            moved = difference(*shape, seed + 1, device) if len(shape) == 2 else torch.randn(shape, device=device)
            value.add_(moved, alpha=MOVED * 0.02)
        return value.bfloat16().cpu()

    made: list[Any] = []
    for kind in ("base", "tuned"):
        if folder is None:
            made.append({name: load(name, kind == "tuned") for name in shapes})
            continue
        (folder / kind).mkdir()
        file = folder / kind / "model.safetensors"
        write_safetensors(file, shapes, lambda name, kind=kind: load(name, kind == "tuned"), {"format": "pt"})
        made.append(str(folder / kind))
    return made[0], made[1], sum(torch.Size(shape).numel() for _, shape in shapes.values())


def model_row(parameters: int, budget: float, device: torch.device, folder: Path | None, deadline: float) -> dict:
    """One model; without ``folder`` in memory."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        room = shutil.disk_usage(temporary).free
        place = Path(temporary) if room > 5 * parameters else None
        try:
            base, tuned, count = make_pair(parameters, device, place, deadline)
        except Late as error:
            return {"what": "model", "parameters": parameters, "seconds": None, "failed": str(error)}
        row = {"what": "model", "parameters": count, "budget": budget, "from": "disk" if place else "memory"}
        row["made_seconds"] = round(time.perf_counter() - start, 1)
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)

        def progress(done: int, total: int, name: str) -> None:
            if time.monotonic() > deadline:
                raise Late(f"broken off at {done} of {total} bytes")

        of_compress = {
            "read and measured": (run.Run, "_plan"),
            "distance": (run.Run, "_moved"),
            "ranks": (run.Run, "_ranks"),
            "encoded": (plans.Plans, "made"),
            "written": (importlib.import_module("dts.adapter.compress"), "write_folder"),
        }
        start = time.perf_counter()
        with phases(of_compress, None) as found:
            try:
                out = Path(temporary) / "adapter"
                adapter = dts.compress(base, tuned, out, budget=budget, device=device, progress=progress)
                row |= {"seconds": round(time.perf_counter() - start, 2), "method": adapter.method}
                row |= {"bytes": adapter.nbytes, "squared_error": adapter.config["squared_error"]}
            except Late as error:
                row |= {"seconds": None, "failed": str(error)}
            except (RuntimeError, OSError) as error:  # does not fit
                row |= {"seconds": None, "failed": str(error)[:300]}
        row["phases"] = {name: round(s, 2) for name, s in found.items()}
    return row | {"peak_device_mb": peak_mb(device)}


def encoder_pair() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """An encoder of MiniLM-L6's shape with random weights, and a fine-tune of it that saw `TOUCHED` tokens."""
    torch.manual_seed(0)
    model = cpu_model.encoder()
    if model is None:
        raise RuntimeError("--encoder needs transformers (the 'hf' extra)")
    base = {name: value.clone() for name, value in model.state_dict().items() if value.is_floating_point()}
    tuned = {}
    for seed, (name, value) in enumerate(base.items()):
        if value.dim() == 2:
            moved = difference(*value.shape, seed, torch.device("cpu"))
            if "word_embeddings" in name:
                moved[cpu_model.TOUCHED :] = 0
        else:
            moved = torch.randn(value.shape, generator=torch.Generator().manual_seed(seed))
        tuned[name] = value + MOVED * 0.02 * moved
    return base, tuned


def digest(folder: Path) -> str:
    """Of all files of a folder and their names."""
    whole = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            whole.update(str(path.relative_to(folder)).encode() + b"\0" + path.read_bytes())
    return whole.hexdigest()


def encoder_row(budget: float, device: torch.device, method: str = "auto") -> dict:
    """MiniLM-L6's shape, by one thread and by as many as there are."""
    base, tuned = encoder_pair()
    most = torch.get_num_threads()
    row: dict[str, Any] = {"what": "encoder", "parameters": sum(t.numel() for t in base.values()), "budget": budget}
    row |= {"variant": native.variant(), "threads": [], "seconds": [], "cpu_seconds": []}
    digests = set()
    with tempfile.TemporaryDirectory() as temporary:
        try:
            for threads in sorted({1, most}):
                torch.set_num_threads(threads)
                out, start, cpu = Path(temporary, str(threads)), time.perf_counter(), time.process_time()
                adapter = dts.compress(base, tuned, out, budget=budget, device=device, method=method)
                row["threads"].append(threads)
                row["seconds"].append(round(time.perf_counter() - start, 2))
                row["cpu_seconds"].append(round(time.process_time() - cpu, 2))
                digests.add(digest(out))
        finally:
            torch.set_num_threads(most)
    return row | {"method": adapter.method, "bytes": adapter.nbytes, "same_bytes": len(digests) == 1}


def shape_of(text: str) -> tuple[int, int, float]:
    """``4096x4096:.3`` -> (4096, 4096, 0.3)."""
    try:
        sizes, fraction = text.split(":")
        m, n = map(int, sizes.lower().split("x"))
        if m < 1 or n < 1 or not 0 < float(fraction) <= 1:
            raise ValueError
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not ROWSxCOLUMNS:SHARE, as in 4096x4096:.3") from None
    return m, n, float(fraction)


def cases(args, device: torch.device, deadline: float) -> Iterator[tuple[str, Callable[[], dict]]]:
    for m, n, fraction in args.shapes:
        for count in args.batches:
            yield (
                f"{count} of {m} x {n}",
                lambda m=m, n=n, fraction=fraction, count=count: matrix_row(m, n, fraction, count, device),
            )
    if args.encoder:
        yield "an encoder", lambda: encoder_row(args.budget, device, args.method)
    for parameters in args.parameters:
        yield (
            f"{parameters:.3g} parameters",
            lambda parameters=parameters: model_row(int(parameters), args.budget, device, args.folder, deadline),
        )


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--shapes", nargs="*", type=shape_of, default=[(4096, 4096, 0.3), (4096, 4096, 0.05)])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8], help="matrices at once")
    parser.add_argument("--parameters", nargs="*", type=float, default=[1.1e9, 7e9])
    parser.add_argument("--encoder", action="store_true", help="a pair of MiniLM-L6's shape")
    parser.add_argument("--method", default="auto", help="of --encoder: auto, residual, sketch")
    parser.add_argument("--budget", type=float, default=0.01)
    parser.add_argument("--seconds", type=float, default=170)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--folder", type=Path, help="where models are written (default: the system's temporary one)")
    args = parser.parse_args(argv)
    device = torch.device(args.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("no CUDA device: not measured", file=sys.stderr)
        return 1
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    file = args.out / slug(name) / "compress.jsonl"
    file.parent.mkdir(parents=True, exist_ok=True)
    about = {"device": name, "torch": torch.__version__, "package": dts.__version__}
    deadline, failed = time.monotonic() + args.seconds, 0
    with open(file, "w") as rows:
        for case, measure in cases(args, device, deadline):
            if time.monotonic() > deadline:
                row = {"what": case, "failed": "left out: the seconds were over"}
            else:
                try:
                    row = measure()
                except RuntimeError as error:  # does not fit the device
                    row = {"what": case, "failed": str(error)[:300]}
            failed += "failed" in row or row.get("same_bytes") is False
            print(json.dumps(row), flush=True)
            rows.write(json.dumps(row | about) + "\n")
            rows.flush()
            if device.type == "cuda":
                torch.cuda.empty_cache()
    print(f"wrote {file}", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
