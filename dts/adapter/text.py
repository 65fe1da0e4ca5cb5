"""Numbers and dtypes as a configuration has them."""

from typing import Any, overload

import torch

from dts.adapter.table import single


def dtype_name(dtype: torch.dtype) -> str:
    """torch.float32 -> "float32"."""
    return str(dtype).removeprefix("torch.")


def as_dtype(given: Any) -> torch.dtype | None:
    """A dtype as transformers takes it; None for "auto"."""
    if given is None or given == "auto":
        return None
    found = getattr(torch, given, None) if isinstance(given, str) else given
    if not isinstance(found, torch.dtype):
        raise ValueError(f"{given!r} is no dtype: float32, bfloat16, ...")
    return found


@overload
def number(x: float) -> float: ...
@overload
def number(x: None) -> None: ...


def number(x):
    """To 7 digits: what float32 arithmetic knows of it."""
    return None if x is None else float(f"{x:.7g}")


@overload
def measure(x: float) -> float: ...
@overload
def measure(x: None) -> None: ...


def measure(x):
    """The nearest float32, which takes half the bytes in a table; to 7 digits where that would be far off."""
    if x is None:
        return None
    near = single(float(x))
    return number(x) if near is None else near
