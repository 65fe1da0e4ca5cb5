"""Which path computes a product: a pure function of device, shapes, dtype and rows, and a count of what ran."""

import importlib.util
import os
import warnings
from collections import Counter
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache

import torch

from .cpu import native, rules

ran: Counter = Counter()  # (op, path) -> calls, shown by `dts doctor` and asserted by tests


@dataclass(frozen=True)
class Problem:
    """Everything the choice may depend on."""

    op: str  # "delta_linear" | "linear" | "reconstruct" | "delta_embedding"
    device: str  # "cpu" | "cuda" | "interpreter" (Triton's, on the CPU)
    dtype: str  # "float16" | "bfloat16" | "float32" | "float64"
    rows: int
    in_features: int
    out_features: int
    max_rank: int
    entries: int = 1
    places: int = 1
    tasks: int = 1
    layout: str = "disk"  # "disk" | "planar" | "planar_levels"
    transposed: bool = False
    exact: bool = False  # float32 products on the CPU, not two 8-bit digits (`exact_products`)
    variant: str | None = None  # the CPU's instruction set as in `cpu.native.variants`; None: this machine's


def choose(problem: Problem) -> str:
    """Name of the path for a problem."""
    if problem.layout != "disk":
        return _choose_planar(problem)
    return _choose_disk(problem)


# ---- CPU -------------------------------------------------------------------------------------------------------

_exact: ContextVar[bool] = ContextVar("exact_products", default=False)
exact = _exact.get  # () -> whether `exact_products` is on here


@contextmanager
def exact_products(exact: bool = True):
    """CPU products inside use float32 throughout instead of 16-bit x and t (see `cpu.native.delta_linear`).

    Of this thread (and asyncio task) only: products that others run meanwhile are as they were.
    """
    before = _exact.set(exact)
    try:
        yield
    finally:
        _exact.reset(before)


def _choose_disk(p: Problem) -> str:
    if p.device not in ("cpu", "interpreter"):
        return "reference"
    return rules.choose(p.op, p.dtype, p.rows, p.entries, p.places, p.exact, p.variant)


# ---- GPU -------------------------------------------------------------------------------------------------------

OLDEST = (8, 0)  # bf16 tensor cores and asynchronous copies to shared memory
DENSE_ROWS = 64  # of one task, from here a dense matrix and a library product; modelled, not measured
DEQUANTISE_ROWS = 256  # from here two library products with dequantised factors; crossover modelled, not measured


def _choose_planar(p: Problem) -> str:
    kernels = p.device in ("cuda", "interpreter") and p.dtype in ("float16", "bfloat16", "float32")
    # an embedding's rows have no kernel: the reference waits for the device and no CUDA graph can capture it
    if not kernels or p.op == "delta_embedding" or p.rows == 0 or p.max_rank == 0:
        return "reference"
    levels = "_levels" if p.layout == "planar_levels" else ""
    if p.op == "reconstruct":
        return "triton" + levels
    # levels in 16 bits would be rounded values instead of exact codes, so they stay packed
    exact = not levels or p.dtype == "float32"
    many = p.entries == 1 and p.rows >= DEQUANTISE_ROWS and exact
    return ("dequantise" if p.transposed or many else "triton") + levels


def choose_samples(device: str, dtype: torch.dtype, rows: int, entries: int, transposed: bool, arena: bool) -> str:
    """Name of the path for a product with sampled elements; arena: all codes are in one tensor, as off the CPU."""
    if not rows or dtype not in native.DTYPES:
        return "reference"
    if arena:
        if device_kind(device) not in ("cuda", "interpreter") or device == "cuda" and not _has_triton():
            return "reference"
        return "dense" if transposed or entries == 1 and rows >= DENSE_ROWS else "triton"
    return "native" if device == "cpu" and native.variant() else "reference"


def device_kind(device: str) -> str:
    """`Problem.device` of a torch device type."""
    return "interpreter" if device == "cpu" and os.environ.get("TRITON_INTERPRET") == "1" else device


def layout_for(device: str, capability: tuple[int, int] | None, has_triton: bool) -> tuple[str, str | None]:
    """(layout of a bank, why it is the slow one or None) for a device type and a CUDA compute capability."""
    if device != "cuda":
        return "disk", None
    if capability is None:
        return "disk", "this GPU is not a CUDA device"
    if capability < OLDEST:
        return "disk", f"this GPU is sm_{capability[0]}{capability[1]} and the kernels need sm_80 or newer"
    if not has_triton:
        return "disk", "Triton is not installed (pip install triton)"
    return "planar", None


def bank_layout(device: torch.device) -> str:
    """Layout of a bank on a device; a slow fallback warns once."""
    if device.type != "cuda":
        return "disk"
    capability = None if torch.version.hip else torch.cuda.get_device_capability(device)
    layout, reason = layout_for("cuda", capability, importlib.util.find_spec("triton") is not None)
    if reason:
        _warn_once(f"deltas run through plain PyTorch, many times slower than the packed kernels: {reason}")
    return layout


@cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None and bank_layout(torch.device("cuda")) == "planar"


@cache
def _warn_once(message: str) -> None:
    warnings.warn(message, RuntimeWarning, stacklevel=4)
