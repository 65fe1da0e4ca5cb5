"""The memory of this process before a model: Python, PyTorch and the libraries, as the system counts it now."""

from __future__ import annotations

import ctypes
import gc
import sys
from pathlib import Path

import torch
from torch import nn

STATUS = Path("/proc/self/status")
M_MMAP_THRESHOLD, LARGE = -3, 1 << 17  # of malloc.h; bytes: as it is at first


def resident(kind: str = "VmRSS") -> int | None:
    """Bytes of this process in memory, mapped files included (kind VmHWM: the most so far); None off Linux."""
    try:
        rows = dict(row.split(":", 1) for row in STATUS.read_text().splitlines())
        return int(rows[kind].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None


def settled() -> int | None:
    """`resident`, once what every model needs is loaded and what nobody needs is given back."""
    _warm()
    gc.collect()
    _malloc("malloc_trim", 0)
    return resident()


def steady() -> None:
    """From now on malloc takes large tensors from the system and gives them back when they are freed.

    glibc stops doing so with the first one that is freed, and puts tensors of a pass among those of tasks that come and
    go: *measured* on MiniLM, 10 tasks of which 8 were exchanged, a pass of 8 rows of 96 tokens after each: 91 MB of
    free memory in the heap, 4 MB with this, at the same speed.
    """
    _malloc("mallopt", M_MMAP_THRESHOLD, LARGE)


def _malloc(function: str, *args: int) -> None:
    """Calls a function of glibc; other systems have other mallocs."""
    if sys.platform == "linux":
        try:
            getattr(ctypes.CDLL(None), function)(*args)
        except (OSError, AttributeError):  # musl
            pass


@torch.inference_mode()
def _warm() -> None:
    """A few operations of every model, so that threads, kernels and pages of the libraries are there to be counted."""
    from dts.nn import DTSLinear
    from dts_kernels.backends import cpu

    del DTSLinear, cpu  # what they import is meant
    x = torch.zeros(32, 8, 64)
    x = nn.functional.gelu(nn.functional.linear(x, torch.zeros(64, 64), torch.zeros(64)))
    x = nn.functional.layer_norm(x, (64,), torch.zeros(64), torch.zeros(64))
    heads = x.view(32, 8, 4, 16).transpose(1, 2)
    mask = torch.ones(32, 1, 8, 8, dtype=torch.bool)
    nn.functional.scaled_dot_product_attention(heads, heads, heads, attn_mask=mask)
    nn.functional.embedding(torch.zeros(4, dtype=torch.long), torch.zeros(4, 4))
    torch.softmax(x @ x.transpose(1, 2), -1).sum().item()
