"""What a call of a layer costs the host, beside the plain layer.

    python -m benchmarks.kernels.host [--out benchmarks/results] [--calls 5] [--repeats 1000]

Microseconds of host time a call, the best of REPEATS runs of CALLS calls (others disturb a host), in inference mode;
the device is waited for between the runs only.  With a CUDA device it is that: the same layers, Triton's own launcher
and the real base product.  Without one it is processor time of the thread, and tensors on the CPU go the way that those
on a GPU go, with a launcher that launches nothing: all Python and all dispatch that a launch needs, Triton's look at
the arguments included where there is one, none of the driver's part.  The base product is then that of a small layer on
the CPU, in the plain layer and in ours, and stands for the library's.  `added` is what the tasks cost beside the plain
layer.

Writes host.json to OUT/<gpu or host>/.  Host time only: it says nothing of how long a device takes.
"""

import argparse
import json
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import cache, partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import nn
from triton.backends.compiler import GPUTarget
from triton.compiler.compiler import make_backend
from triton.runtime import jit

import dts_kernels.bank
import dts_kernels.parts.sample
from dts.codec import Factors
from dts.files import write_text
from dts.nn import DTSConv1D, DTSEmbedding, DTSLayerNorm, DTSLinear
from dts.nn.deltas import Piece, table
from dts.nn.layers import DTSNorm
from dts.nn.layers.layer import Layer, standalone
from dts_kernels import Samples, dispatch, pack
from dts_kernels.gpu import launch
from dts_kernels.gpu.config import Device, slug
from dts_kernels.gpu.tune import random_factors
from dts_kernels.samples import groups_of

SIZE, RANK, TASKS = 64, 16, 8
STRIDE = 4  # of the samples


class Nothing(launch.Launcher):
    """Launches nothing: tensors on the CPU are on an H100 that has no driver."""

    def index(self, tensor: torch.Tensor) -> int:
        return 0

    def properties(self, index: int) -> Device:
        return Device("NVIDIA H100 80GB HBM3", 132, (9, 0))

    def captures(self, index: int) -> bool:
        return False

    def stream(self, index: int) -> int | None:
        launch._listening()  # what a card's launcher asks, but for the driver
        return 0


class Compiled:
    """In place of Triton's compiled kernel.  seen: what Triton tells the arguments apart by, and picks a kernel by."""

    function, packed_metadata = 0, (4, 1, 0)

    def __init__(self, seen: Any):
        self.seen = seen

    def run(self, *arguments: Any) -> None:
        pass


@cache
def _binder(kernel: Any) -> Callable[..., tuple[dict, list, dict]]:
    return jit.create_function_from_signature(kernel.signature, kernel.params, make_backend(GPUTarget("cuda", 90, 32)))


def look(kernel: Any, *arguments: Any, grid: Any, warmup: bool, **constants: Any) -> Compiled:
    """In place of Triton's launch: all that it does on the host before it calls the driver."""
    _, seen, options = _binder(kernel)(*arguments, debug=False, **constants)
    return Compiled((seen, jit.compute_cache_key({}, seen, options)))


@contextmanager
def as_on_a_card(launcher: launch.Launcher) -> Iterator[None]:
    """Inside, banks on the CPU have the GPU's layouts, and their products go the GPU's way to that launcher."""
    before = launch.use(launcher)
    sampled = dts_kernels.parts.sample
    try:
        with (
            mock.patch.object(dts_kernels.bank, "bank_layout", lambda device: "planar"),
            mock.patch.object(sampled, "SampleBank", partial(sampled.SampleBank, arena=True)),
            mock.patch.object(dispatch, "device_kind", lambda device: "cuda"),
            mock.patch.object(dispatch, "has_triton", lambda: True),
            mock.patch.object(jit.JITFunction, "run", look),
            mock.patch.object(table, "direct", lambda *tensors: False),  # rows of a table are not read on the host
        ):
            yield
    finally:
        launch.use(before)


def codes(rows: int, columns: int) -> torch.Tensor:
    return pack(torch.randint(0, 4, (rows, columns), dtype=torch.uint8))


def stored(kind: str, task: int, shape: tuple[int, int]) -> Factors:
    """A task's delta of a matrix."""
    factors: list[Any] = [random_factors(*shape, RANK, task, "cpu")]
    if kind == "sketch":
        factors.append(Samples(codes(shape[0], groups_of(shape[1], STRIDE)), 0.01, STRIDE, task, shape))
    return Factors(tuple(factors), shape, None, None, 1.0, None)


class Conv1D(nn.Module):
    """GPT-2's linear layer, as transformers has it."""

    def __init__(self, out_features: int, in_features: int):
        super().__init__()
        self.nf = out_features
        self.weight = nn.Parameter(torch.randn(in_features, out_features))
        self.bias = nn.Parameter(torch.zeros(out_features))

    def forward(self, x):
        return torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight).view(*x.size()[:-1], self.nf)


def kinds() -> dict[str, tuple[nn.Module, type[Layer], Callable[[int], dict[str, list[Piece]]]]]:
    """Kind -> (plain layer, its DTS layer, task -> what it changes)."""
    shape = (SIZE, SIZE)
    factors = lambda kind: lambda task: {"weight": [Piece("factors", stored(kind, task, shape))]}  # noqa: E731
    vectors = lambda task: {"weight": [Piece("raw", 0.01 * torch.randn(SIZE))]}  # noqa: E731
    biased = lambda task: factors("components")(task) | {"bias": [Piece("raw", torch.randn(SIZE))]}  # noqa: E731
    return {
        "linear, components": (nn.Linear(*shape, bias=False), DTSLinear, factors("components")),
        "linear, components and biases": (nn.Linear(*shape), DTSLinear, biased),
        "linear, sketch": (nn.Linear(*shape, bias=False), DTSLinear, factors("sketch")),
        "Conv1D, components": (Conv1D(*shape), DTSConv1D, factors("components")),
        "embedding, components": (nn.Embedding(*shape), DTSEmbedding, factors("components")),
        "LayerNorm": (nn.LayerNorm(SIZE), DTSLayerNorm, vectors),
        "RMSNorm": (nn.RMSNorm(SIZE), DTSNorm, vectors),
    }


def microseconds(
    call: Callable[[], object],
    calls: int,
    repeats: int,
    wait: Callable[[], object],
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Host time of one call; clock: in seconds."""
    for _ in range(20):
        call()
    times = []
    for _ in range(repeats):
        wait()
        start = clock()
        for _ in range(calls):
            call()
        times.append(1e6 * (clock() - start) / calls)
    return min(times)


def measure(device: str, calls: int, repeats: int) -> Iterator[dict[str, Any]]:
    """A row for each kind of layer and batch."""
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    clock = time.perf_counter if device == "cuda" else time.thread_time  # other programs count in none of the latter
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    for name, (plain, layer_class, pieces) in kinds().items():
        plain = plain.to(device, dtype).requires_grad_(False)
        layer = standalone(plain, layer_class)
        for task in range(TASKS):
            layer.load(task, pieces(task))
        layer.to(device)
        for rows in (1, TASKS):
            layer.dts.state.set([{task: 1.0} for task in range(rows)])
            x = torch.randn(rows, SIZE, device=device, dtype=dtype)
            given = torch.randint(SIZE, (rows, 1), device=device) if isinstance(plain, nn.Embedding) else x
            with torch.inference_mode():
                base, own = (microseconds(partial(m, given), calls, repeats, wait, clock) for m in (plain, layer))
            yield {"layer": name, "rows": rows, "tasks": rows, "plain_us": base, "dts_us": own, "added_us": own - base}


def main() -> None:
    parser = argparse.ArgumentParser(description="Host time of a call, by kind of layer.")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--calls", type=int, default=5, help="calls that are timed together")
    parser.add_argument("--repeats", type=int, default=1000)
    arguments = parser.parse_args()
    card = torch.cuda.is_available()
    of = torch.cuda.get_device_name() if card else "none: a launcher that launches nothing"
    print(f"host microseconds a call; card: {of}")
    found: list[dict[str, Any]] = []
    torch.set_num_threads(1)
    with nullcontext() if card else as_on_a_card(Nothing()):
        for row in measure("cuda" if card else "cpu", arguments.calls, arguments.repeats):
            found.append(row)
            print(
                f"{row['layer']:32} {row['rows']} rows  plain {row['plain_us']:7.1f}  dts {row['dts_us']:7.1f}  "
                f"added {row['added_us']:7.1f}  {row['dts_us'] / row['plain_us']:5.2f} x",
                flush=True,
            )
    versions = {"torch": torch.__version__, "python": platform.python_version(), "machine": platform.machine()}
    record = {"what": "host microseconds a call, inference mode", "card": of, **versions, "rows": found}
    folder = arguments.out / (slug(of) if card else "host")
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "host.json", json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
