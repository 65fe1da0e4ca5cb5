"""Which device is meant by a name, whether it is there, and has room: one rule, in one wording, for all that asks."""

from typing import Any

import torch

NAMES = "cpu, cuda, cuda:1, ... or auto, a GPU where there is one"


def device_named(name: Any, here: bool = True) -> torch.device:
    """A device by its name, "auto", or as torch has it.

    here: it must be in this machine; what is only planned for may be in another.
    Raises ValueError for what is no device, holds no numbers, or is not here.
    """
    if isinstance(name, str) and name == "auto":
        return torch.device("cuda" if _cuda() else "cpu")
    try:
        if isinstance(name, bool) or name is None:
            raise TypeError
        found = torch.device(name)
    except (RuntimeError, TypeError, ValueError):
        raise ValueError(f"device {name!r}: there is none of this name; it is {NAMES}") from None
    if found.type == "cpu":
        return torch.device("cpu")
    if found.type == "meta":
        raise ValueError(f"device {str(name)!r}: it holds no numbers, and computes none; give {NAMES}")
    if not here:
        return found
    available = getattr(getattr(torch, found.type, None), "is_available", None)
    if not (available and available()):
        raise ValueError(f"device {str(name)!r}: PyTorch finds none here; cpu is, and auto takes what there is")
    if found.type == "cuda" and (found.index or 0) >= _cuda():
        raise ValueError(f"device {str(name)!r}: CUDA devices here are numbered from 0 to {_cuda() - 1}")
    return found


def no_memory(error: BaseException) -> bool:
    """Whether an error says that a device, or this machine, had no room: of CPUs PyTorch has no class for it."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)


def _cuda() -> int:
    return torch.cuda.device_count() if torch.cuda.is_available() else 0
