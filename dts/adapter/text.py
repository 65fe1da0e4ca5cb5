"""Numbers and dtypes as a configuration has them."""

from typing import overload

import torch


def dtype_name(dtype: torch.dtype) -> str:
    """torch.float32 -> "float32"."""
    return str(dtype).removeprefix("torch.")


@overload
def number(x: float) -> float: ...
@overload
def number(x: None) -> None: ...


def number(x):
    """To 7 digits: what float32 arithmetic knows of it."""
    return None if x is None else float(f"{x:.7g}")
