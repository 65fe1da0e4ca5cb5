"""The memory that a model with many tasks takes, beside its plan, in a process of its own.

    python -m benchmarks.resident [--model minilm|smollm2|FOLDER] [--tasks 40] [--share 0.5] [--under cgroup]
    python -m benchmarks.resident --objects      bytes of a loaded task, beside what its folder says

A fine-tune whose matrices moved by 1 % of their norm is made of the base, compressed to 1 % and copied to as many
folders as there are tasks.  The process plans for --share of the tasks' bytes beside all that is fixed, loads within
that limit, asks every task twice for a batch of random tokens (a language model: for an answer up to the length), so
that tasks come and go, and says the most that it ever had in memory, mapped pages included.

--under: once more, in a cgroup (version 1 or 2) that is made for it and may have the plan and 5 %; needs the right to
make one.
--convert: the base in another dtype than it is stored in.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

SLACK = 1.05
CGROUPS = Path("/sys/fs/cgroup")


def base_of(model: str, cache: Path) -> Path:
    if model == "minilm":
        from dts.demo.finetune import base_folder

        return base_folder()
    if model == "smollm2":
        from benchmarks.quality import smollm2

        return smollm2.base_folder(cache)
    return Path(model)


def made_adapter(base: Path, folder: Path) -> Path:
    """An adapter of 1 % of a fine-tune that is made here."""
    import dts
    from dts.checkpoint import write_safetensors

    model, tuned = dts.open_checkpoint(base), folder / "tuned"
    tuned.mkdir()

    def load(name: str) -> torch.Tensor:
        value = model.load(name).clone()
        if not value.is_floating_point():
            return value
        draw = torch.Generator().manual_seed(sum(name.encode()))
        moved = torch.randn(value.shape, generator=draw)
        if value.dim() == 2 and "embed" not in name:
            u, v = (torch.randn(size, 32, generator=draw) for size in value.shape)
            moved.addmm_(u, v.T)
        elif value.dim() == 2:
            return value  # embeddings are left alone, as by most fine-tunes
        return value + (0.01 * value.norm() / moved.norm() * moved).to(value.dtype)

    layout = {name: (model.dtype(name), model.shape(name)) for name in model.names}
    write_safetensors(tuned / "model.safetensors", layout, load, {"format": "pt"})
    shutil.copy(base / "config.json", tuned)
    dts.compress(base, tuned, out=folder / "adapter", budget=0.01)
    shutil.rmtree(tuned)
    return folder / "adapter"


# ---- the process that is measured --------------------------------------------------------------------------------


def measured(base: str, folders: list[str], args: argparse.Namespace) -> dict:
    """Runs in the child."""
    import dts
    from dts.plan import plan
    from dts.plan.process import resident

    adapters = {Path(folder).name: folder for folder in folders}
    options = {"batch": args.batch, "length": args.length} | ({"dtype": args.convert} if args.convert else {})
    whole = plan(base, adapters, **options)
    tasks = whole.total - whole.fixed
    limit = max(whole.fixed + int(args.share * tasks), whole.loading)
    model = dts.DTSModel.from_pretrained(base, adapters, memory=limit, **options)
    loaded = resident()
    draw = torch.Generator().manual_seed(0)
    vocabulary = model.config.get_text_config().vocab_size
    with torch.inference_mode():
        for _ in range(2):
            for name in adapters:
                if model.can_generate():
                    new = max(args.length // 8, 1)
                    ids = torch.randint(vocabulary, (args.batch, args.length - new), generator=draw)
                    mask = torch.ones_like(ids)
                    model.generate(
                        input_ids=ids, attention_mask=mask, max_new_tokens=new, min_new_tokens=new, do_sample=False,
                        tasks=name,
                    )  # fmt: skip
                else:
                    ids = torch.randint(vocabulary, (args.batch, args.length), generator=draw)
                    model(input_ids=ids, attention_mask=torch.ones_like(ids), tasks=name)
    return {
        "plan": model.plan.as_dict(),
        "planned": model.plan.at_most,
        "loaded": loaded,
        "peak": resident("VmHWM"),
        "in_memory_at_once": len(adapters) - len(model.status()["on_disk"]),
        "tasks": len(adapters),
    }


def main_child(text: str) -> None:
    given = json.loads(text)
    if given["cgroup"]:
        Path(given["cgroup"], "cgroup.procs").write_text(str(os.getpid()))
    found = measured(given["base"], given["folders"], argparse.Namespace(**given["args"]))
    print("RESULT " + json.dumps(found))


# ---- the process that measures -----------------------------------------------------------------------------------


class Cgroup:
    """A cgroup with a limit of memory, removed afterwards."""

    def __init__(self, limit: int):
        first = CGROUPS / "memory" if (CGROUPS / "memory").is_dir() else CGROUPS
        self.version = 1 if first.name == "memory" else 2
        self.path = first / f"dts-resident-{os.getpid()}"
        self.path.mkdir()
        (self.path / ("memory.limit_in_bytes" if self.version == 1 else "memory.max")).write_text(str(limit))

    @property
    def most(self) -> int:
        return int((self.path / ("memory.max_usage_in_bytes" if self.version == 1 else "memory.peak")).read_text())

    def remove(self) -> None:
        self.path.rmdir()


def child(base: Path, folders: list[Path], args: argparse.Namespace, cgroup: Cgroup | None) -> dict:
    given = {
        "base": str(base),
        "folders": [str(folder) for folder in folders],
        "cgroup": str(cgroup.path) if cgroup else None,
        "args": {key: getattr(args, key) for key in ("batch", "length", "convert", "share")},
    }
    code = "from benchmarks.resident import main_child; import sys; main_child(sys.argv[1])"
    environment = os.environ | {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    process = subprocess.run(
        [sys.executable, "-c", code, json.dumps(given)], stdout=subprocess.PIPE, text=True, env=environment
    )
    rows = [row for row in process.stdout.splitlines() if row.startswith("RESULT ")]
    if process.returncode or not rows:
        raise SystemExit(
            f"the process ended with {process.returncode}: more memory than was planned, or an error above"
        )
    return json.loads(rows[0].removeprefix("RESULT "))


def objects(base: Path, folder: Path) -> None:
    """Bytes that a task more takes, beside `dts.nn.sizes.task_bytes` without and with its objects."""
    import dts
    from dts.adapter.folder import read_layout
    from dts.nn.sizes import OBJECTS, task_bytes
    from dts.plan.process import resident, settled

    model = dts.DTSModel.from_pretrained(base, {"first": folder})
    ids = torch.ones(2, 16, dtype=torch.long)
    config, stored = read_layout(folder)
    rows, said = len(config["tensors"]), task_bytes(config, stored)
    with torch.inference_mode():
        for warm in (True, False):
            settled()
            before = resident("RssAnon") or 0
            for i in range(40):
                model.load_task(f"{warm}{i}", folder)
                model.forget_adapter(f"{warm}{i}")  # as models with a limit of memory and servers do
            model(input_ids=ids, tasks=[f"{warm}0", f"{warm}1"])
            settled()
            took = ((resident("RssAnon") or 0) - before) / 40
    print(f"a task of {rows} tensors took {took:,.0f} bytes; said: {said:,}, of which its objects {rows * OBJECTS:,}")
    print(f"bytes of objects a tensor: {(took - said + rows * OBJECTS) / rows:,.0f}")
    print(f"times its bytes on disk, {config['bytes']:,}: {took / config['bytes']:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="minilm")
    parser.add_argument("--tasks", type=int, default=40)
    parser.add_argument("--share", type=float, default=0.5, help="of the tasks' bytes that the limit leaves room for")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--convert", help="dtype of the base, if not as stored")
    parser.add_argument("--under", choices=("cgroup",))
    parser.add_argument("--cache", type=Path, default=Path(".cache") / "quality", help="where a converted base is kept")
    parser.add_argument("--adapter", type=Path, help="take this adapter of the base instead of making one")
    parser.add_argument("--objects", action="store_true")
    parser.add_argument("--json", type=Path, help="a file for the figures")
    args = parser.parse_args()
    base = base_of(args.model, args.cache)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        adapter = args.adapter or made_adapter(base, folder)
        if args.objects:
            objects(base, adapter)
            return
        folders = [folder / f"task{i}" for i in range(args.tasks)]
        for one in folders:
            shutil.copytree(adapter, one)
        found = child(base, folders, args, None)
        if args.under == "cgroup":
            cgroup = Cgroup(int(SLACK * found["planned"]))
            try:
                found = child(base, folders, args, cgroup)
                found["cgroup_peak"] = cgroup.most
            finally:
                cgroup.remove()
    found["under"] = args.under
    print(
        f"{args.model}: planned {found['planned'] / 1e6:.1f} MB, most in memory {found['peak'] / 1e6:.1f} MB "
        f"({100 * (found['peak'] / found['planned'] - 1):+.1f} %), {found['tasks']} tasks, "
        f"{found['in_memory_at_once']} of them in memory at once"
        + (f", within {SLACK:.2f} times the plan ({args.under})" if args.under else "")
    )
    process = next(row["bytes"] for row in found["plan"]["rows"] if row["what"] == "process")
    print(
        f"  beyond the process's own {process / 1e6:.1f} MB: planned {(found['planned'] - process) / 1e6:.1f} MB, "
        f"took {(found['peak'] - process) / 1e6:.1f} MB"
    )
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
