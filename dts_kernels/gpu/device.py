"""The device that kernels are launched on."""

from contextlib import AbstractContextManager, nullcontext
from functools import cache

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
def side_stream(index: int | None) -> torch.cuda.Stream:
    """The stream of a device that shrink is captured on."""
    return torch.cuda.Stream(index)


def on_device(tensor: Tensor) -> AbstractContextManager:
    """Launches inside go to the tensor's device."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()
