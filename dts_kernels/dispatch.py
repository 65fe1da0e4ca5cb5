"""Which path computes a product: a pure function of what it looks at, and a count of what ran.

Each backend says of a `Problem` which of its paths it would take, or that it has none (`chooser`); the first that has
one gets it, and "reference", plain PyTorch, is what is left.  `dts doctor` prints the choices from here.
"""

import importlib.util
import os
import warnings
from collections import Counter
from collections.abc import Callable
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache

import torch

ran: Counter[tuple[str, str]] = Counter()  # (op, path) -> calls, shown by `dts doctor` and asserted by tests


@dataclass(frozen=True)
class Problem:
    """Everything the choice may depend on."""

    op: str  # a key of `paths.PATHS`
    device: str  # "cpu" | "cuda" | "interpreter" (Triton's, on the CPU)
    dtype: str  # "float16" | "bfloat16" | "float32" | "float64"
    rows: int
    entries: int = 1
    places: int = 1
    out_features: int = 0  # 0 where the choice does not look at sizes (products with disk bytes, samples)
    in_features: int = 0
    rank: int = 0  # the most that a task of the bank may have
    layout: str = "disk"  # of a bank: "disk" | "planar" | "planar_levels"; of samples: "disk" | "arena"
    transposed: bool = False
    empty: bool = False  # no task has a rank
    exact: bool = False  # float32 products on the CPU, not two 8-bit digits (`exact_products`)
    variant: str | None = None  # the CPU's instruction set as in `cpu.native.variants`; None: this machine's


_choosers: list[Callable[[Problem], str | None]] = []


def chooser(choose: Callable[[Problem], str | None]) -> Callable[[Problem], str | None]:
    """Decorator for a backend's function: problem -> the path it would take, or None."""
    _choosers.append(choose)
    return choose


def choose(problem: Problem) -> str:
    """Name of the path for a problem."""
    return next((path for ask in _choosers if (path := ask(problem))), "reference")


# ---- what the choice looks at ----------------------------------------------------------------------------------

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


def device_kind(device: str) -> str:
    """`Problem.device` of a torch device type."""
    return "interpreter" if device == "cpu" and os.environ.get("TRITON_INTERPRET") == "1" else device


# ---- layouts ---------------------------------------------------------------------------------------------------

OLDEST = (8, 0)  # bf16 tensor cores and asynchronous copies to shared memory


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
def has_triton() -> bool:
    """Whether the GPU kernels run on this machine's GPU."""
    return importlib.util.find_spec("triton") is not None and bank_layout(torch.device("cuda")) == "planar"


@cache
def _warn_once(message: str) -> None:
    warnings.warn(message, RuntimeWarning, stacklevel=4)
