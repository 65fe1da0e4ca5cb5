"""Fifty tasks of a model of 100 M parameters from disk: seconds until each answers, and bytes of memory they cost.

    python -m benchmarks.load [--tasks N]

The base has BERT-base's matrices (12 layers of 768) and random weights; the adapters are copies of one file of about
1 %, so the file system's cache holds them all: what is measured is the work of loading, not the disk.
"""

import argparse
import resource
import tempfile
import time
from pathlib import Path

import torch
from torch import nn

import dts
from dts.adapter import Adapter, Entry
from dts.adapter.sizes import measured
from dts.codec import Factors
from dts.nn import DTSModel
from dts_kernels import PackedFactors

LAYERS, WIDTH, RANK = 12, 768, 60


def base() -> nn.Module:
    def layer():
        square = {name: nn.Linear(WIDTH, WIDTH) for name in ("query", "key", "value", "output")}
        return nn.ModuleDict(square | {"up": nn.Linear(WIDTH, 4 * WIDTH), "down": nn.Linear(4 * WIDTH, WIDTH)})

    return nn.ModuleList(layer() for _ in range(LAYERS))


def entries(model: nn.Module) -> dict[str, Entry]:
    made = {}
    for name, parameter in model.named_parameters():
        shape = tuple(parameter.shape)
        if len(shape) == 1:
            made[name] = Entry(name, name, shape, "delta", tensor=0.01 * torch.randn(shape))
            continue
        u, v = (torch.randint(0, 256, (size, RANK // 4), dtype=torch.uint8) for size in shape)
        factors = Factors((PackedFactors(u, v, torch.rand(RANK)),), shape, None, None, 1.0, 0.1)
        made[name] = Entry(name, name, shape, "factors", factors=factors)
    return made


def adapter(model: nn.Module, folder: Path) -> Path:
    """A saved adapter with random entries: those of a compressed change of one bias, exchanged."""
    state = model.state_dict()
    changed = {name: tensor + (name == "0.query.bias") for name, tensor in state.items()}
    made = dts.compress(state, changed, out=folder / "one", budget=0.01)
    made = Adapter.load(made.folder)
    made.entries = entries(model)
    measured(made.config, made.entries, {}, digests=True)
    return made.save(folder / "a")


def resident() -> int:
    """Bytes of this process that no file backs."""
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return int(next(row for row in status.read_text().splitlines() if row.startswith("RssAnon")).split()[1]) * 1024


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=50)
    tasks = parser.parse_args().tasks
    model = base()
    parameters = sum(p.numel() for p in model.parameters())
    with tempfile.TemporaryDirectory() as folder:
        path = adapter(model, Path(folder))
        served = DTSModel(model)
        served.load_task("warm", Adapter.load(path))
        before = resident()
        start = time.perf_counter()
        for i in range(tasks):
            served.load_task(f"task{i}", Adapter.load(path))
        seconds = time.perf_counter() - start
        for i in range(tasks):
            served.set_task(f"task{i}")
            for layer in served.model.modules():
                if isinstance(layer, nn.Linear):
                    layer(torch.zeros(1, layer.in_features))
        answered, grown = time.perf_counter() - start, resident() - before
        packed = sum(file.stat().st_size for file in path.iterdir())
        size = f"{packed / 1e6:.2f} MB ({packed / parameters / 4:.1%})"
        print(f"{parameters / 1e6:.0f} M parameters, {tasks} tasks of {size}")
        print(f"{seconds:.2f} s, {1e3 * seconds / tasks:.1f} ms a task; {answered:.2f} s until all have answered")
        print(f"memory no file backs: {grown / 1e6:.1f} MB, {grown / tasks / packed:.2f} of its bytes on disk a task")


if __name__ == "__main__":
    main()
