"""Memory and time of compress, apply, merge and verify over a language model's pair from disk.

    python -m benchmarks.memory [--parameters 1000000000] [--budget 0.01] [--folder DIR] [--json FILE] [--package DIR]

A synthetic Llama in bfloat16 and a fine-tune of it whose matrices moved by 1 % of their norm, with a decaying spectrum,
are written to a folder that is removed at the end (about 5 times a model's bytes).  Each verb runs in a process of its
own, whose memory is sampled: *anonymous* is what no file backs, *resident* counts mapped pages of files too.

--package: another checkout of this project, to be measured on the same pair.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from dts.checkpoint import open_checkpoint, write_safetensors

RANK, MOVED, SAMPLING = 64, 0.01, 0.02  # of the fine-tune's difference; seconds between two looks at a process
VERBS = {
    "compress": "dts.compress({base!r}, {tuned!r}, {adapter!r}, budget={budget})",
    "verify": "assert dts.Adapter.load({adapter!r}).verify({base!r}, {tuned!r}).ok",
    "apply": "dts.adapter.apply.write_checkpoint({base!r}, dts.Adapter.load({adapter!r}), {applied!r})",
    "merge": "dts.merge({base!r}, [{tuned!r}, {tuned!r}], 'task_arithmetic', {merged!r})",
}


def layout(parameters: int) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """Llama 3.2 1B's proportions: width d, MLP 4 d, a quarter of the heads for keys and values, 62.6 d words."""
    layers = 16
    width = next(w for w in range(128, 1 << 14, 128) if 16 * w * (14.5 * w) + 62.6 * w * w >= 0.99 * parameters)
    shapes = {"model.embed_tokens.weight": (int(62.6 * width), width), "model.norm.weight": (width,)}
    for i in range(layers):
        own = {
            "self_attn.q_proj": (width, width),
            "self_attn.k_proj": (width // 4, width),
            "self_attn.v_proj": (width // 4, width),
            "self_attn.o_proj": (width, width),
            "mlp.gate_proj": (4 * width, width),
            "mlp.up_proj": (4 * width, width),
            "mlp.down_proj": (width, 4 * width),
        }
        shapes |= {f"model.layers.{i}.{name}.weight": shape for name, shape in own.items()}
        shapes |= {
            f"model.layers.{i}.{name}.weight": (width,) for name in ("input_layernorm", "post_attention_layernorm")
        }
    return {name: (torch.bfloat16, shape) for name, shape in shapes.items()}


def write_pair(folder: Path, parameters: int) -> tuple[str, str]:
    shapes, made = layout(parameters), []
    for kind in ("base", "tuned"):
        (folder / kind).mkdir()

        def load(name: str, kind=kind) -> torch.Tensor:
            generator = torch.Generator().manual_seed(sum(name.encode()))
            shape = shapes[name][1]
            value = torch.randn(shape, generator=generator).mul_(0.02)
            if kind == "tuned":
                moved = torch.randn(shape, generator=generator)
                if len(shape) == 2:
                    u, v = (torch.randn(size, RANK, generator=generator) for size in shape)
                    scale = torch.arange(1, RANK + 1).float() ** -0.5 * (min(shape) ** 0.5 / 2)
                    moved.addmm_(u * scale / RANK**0.5, v.T)
                value.add_(moved, alpha=MOVED * 0.02 / (moved.square().mean() ** 0.5).item())
            return value.bfloat16()

        write_safetensors(folder / kind / "model.safetensors", shapes, load, {"format": "pt"})
        made.append(str(folder / kind))
    return made[0], made[1]


def watched(code: str, package: Path) -> dict:
    """Runs Python code in a process of its own, from the root of ``package``: seconds and peaks, in MB."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    process = subprocess.Popen([sys.executable, "-c", "import dts, dts.adapter.apply; " + code], cwd=package)
    anonymous = resident = 0
    while process.poll() is None:
        try:
            rows = dict(row.split(":", 1) for row in Path(f"/proc/{process.pid}/status").read_text().splitlines())
            anonymous = max(anonymous, int(rows["RssAnon"].split()[0]))
            resident = max(resident, int(rows["VmHWM"].split()[0]))
        except (OSError, KeyError):  # ended meanwhile
            pass
        time.sleep(SAMPLING)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if process.returncode:
        raise SystemExit(f"it failed: {code}")
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {
        "seconds": round(time.perf_counter() - start, 1),
        "cpu_seconds": round(cpu, 1),
        "anonymous_mb": round(anonymous / 1000),
        "resident_mb": round(resident / 1000),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parameters", type=int, default=10**9)
    parser.add_argument("--budget", type=float, default=0.01)
    parser.add_argument("--folder", type=Path, help="where to write the models (default: the system's temporary one)")
    parser.add_argument("--json", type=Path, help="a file for the figures")
    parser.add_argument("--package", type=Path, default=Path.cwd())
    parser.add_argument("--verbs", nargs="+", choices=VERBS, default=list(VERBS))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        base, tuned = write_pair(Path(folder), args.parameters)
        model = open_checkpoint(base)
        largest = max(4 * torch.Size(model.shape(name)).numel() for name in model.names)
        names = {name: os.path.join(folder, name) for name in ("adapter", "applied", "merged")}
        rows = {
            verb: watched(VERBS[verb].format(base=base, tuned=tuned, budget=args.budget, **names), args.package)
            for verb in args.verbs
        }
        adapter = os.path.join(folder, "adapter")
        size = sum(file.stat().st_size for file in Path(adapter).iterdir()) if Path(adapter).is_dir() else None
        result = {
            "parameters": model.parameters,
            "largest_tensor_fp32_mb": round(largest / 1e6),
            "budget": args.budget,
            "adapter_bytes": size,
            "threads": torch.get_num_threads(),
            "verbs": rows,
        }
    print(
        f"{model.parameters / 1e6:,.0f} M parameters, largest tensor {largest / 1e6:,.0f} MB in float32, "
        f"{args.budget:.2%}, {torch.get_num_threads()} threads"
    )
    columns = ("seconds", "cpu_seconds", "anonymous_mb", "resident_mb")
    print(f"{'':10}" + "".join(f"{column:>14}" for column in columns))
    for verb, row in rows.items():
        print(f"{verb:10}" + "".join(f"{row[column]:>14,}" for column in columns))
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
