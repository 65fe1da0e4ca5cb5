"""The device that kernels are launched on."""

from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .config import Device


@cache
def device_properties(index: int | None) -> Device:
    """Of a CUDA device; None (the interpreter) is a small made-up one."""
    if index is None:
        return Device("interpreter", 4, (8, 0))
    properties = torch.cuda.get_device_properties(index)
    return Device(properties.name, properties.multi_processor_count, (properties.major, properties.minor))


@cache
def side_stream(index: int, name: str) -> torch.cuda.Stream:
    """The stream of a device that launches of that name are captured on."""
    return torch.cuda.Stream(index)


class Beside:
    """In a CUDA graph: launches inside ``with`` run beside those that the current stream gets from now until `join`.

    Their memory has to be taken before, on the current stream, and kept until after `join`: the allocator would else
    give it to launches that run meanwhile.
    """

    def __init__(self, index: int, name: str):
        self.here, self.side = torch.cuda.current_stream(index), side_stream(index, name)
        self.side.wait_stream(self.here)

    def __enter__(self) -> None:
        self._inside = torch.cuda.stream(self.side)
        self._inside.__enter__()

    def __exit__(self, *raised: Any) -> None:
        self._inside.__exit__(*raised)

    def join(self) -> None:
        """What the current stream gets from here on runs after them."""
        self.here.wait_stream(self.side)


class Started(NamedTuple):
    """t of `shrink`, which may still be on its way; parts: what it is added up from, beside: None where it is made."""

    t: Tensor
    parts: Tensor | None = None
    beside: Beside | None = None

    def join(self) -> Tensor:
        """t, for launches on the current stream."""
        if self.beside is not None:
            self.beside.join()
        return self.t


def on_device(tensor: Tensor) -> AbstractContextManager:
    """Launches inside go to the tensor's device."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()
