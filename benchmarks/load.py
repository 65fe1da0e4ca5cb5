"""Fifty tasks of a model of 100 M parameters from disk: seconds until each answers, and bytes of memory they cost.

    python -m benchmarks.load [--tasks N]
    python -m benchmarks.load --served FOLDER      as a server loads them, in processor time of its thread

The base has BERT-base's matrices (12 layers of 768) and random weights; the adapters are copies of one file of about
1 %, so the file system's cache holds them all: what is measured is the work of loading, not the disk.

--served: a folder that ``python -m benchmarks.serving.load --work FOLDER`` left.  Each of its adapters is loaded, then
all are let go, until there were --tasks loads.  What other programs do is in the time that passes, and hardly in this.
"""

import argparse
import gc
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

import dts
from dts.adapter import Adapter, Entry
from dts.adapter.sizes import measured
from dts.checkpoint.fingerprint import fingerprint
from dts.codec import Factors
from dts.nn import DTSModel
from dts.serve.catalogue import Catalogue
from dts.serve.residents import Residents
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


def as_served(folder: Path, loads: int) -> None:
    """Milliseconds of the thread's processor time a load: all, and its steps."""
    model, base = DTSModel.from_pretrained(folder / "base"), fingerprint(dts.open_checkpoint(folder / "base"))
    first, *names = sorted(one.name for one in (folder / "adapters").iterdir())
    model.load_task(first, folder / "adapters" / first)  # as a server does before anybody waits
    model.delete_task(first)
    took = {step: list[float]() for step in ("load", "load_task", "have")}
    model.load_task = _timed(model.load_task, took["load_task"])  # type: ignore[method-assign]
    gc.collect()
    gc.freeze()
    while len(took["have"]) < loads:
        catalogue: Any = Catalogue(folder / "adapters", "base", base)  # which has read about none of them
        residents = Residents(model, catalogue)
        catalogue.load, have = _timed(catalogue.load, took["load"]), _timed(residents.have, took["have"])
        for name in names:
            have([name])
        for name in names:
            residents.drop(name)
    parameters, adapter = sum(p.numel() for p in model.parameters()), Adapter.load(folder / "adapters" / first)
    print(f"{parameters / 1e6:.0f} M parameters, adapters of {len(adapter.entries)} tensors, {len(took['have'])} loads")
    for step, each in zip(("its tensors read and checked", "put into the model", "all"), took.values()):
        print(f"{step}: {1e3 * min(each):.1f} ms at least, median {1e3 * statistics.median(each):.1f}")
    gc.unfreeze()


def _timed(run: Callable[..., Any], took: list[float]) -> Callable[..., Any]:
    def timed(*args: Any) -> Any:
        begun = time.thread_time()
        result = run(*args)
        took.append(time.thread_time() - begun)
        return result

    return timed


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=50)
    parser.add_argument("--served", type=Path)
    args = parser.parse_args()
    tasks = args.tasks
    if args.served is not None:
        as_served(args.served, tasks)
        return
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
