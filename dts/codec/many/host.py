"""What a device's results cost the host: which devices are taken as such, and the one place where it waits for one."""

from contextlib import contextmanager

import torch
from torch import Tensor


def suits(device: torch.device | str | None) -> bool:
    """Are matrices encoded many at once there?  On a CPU each has a thread of its own instead."""
    return device is not None and torch.device(device).type != "cpu"


def to_host(tensors: list[Tensor]) -> list[Tensor]:
    """The same on the CPU, having waited for all of them together."""
    device = next((tensor.device for tensor in tensors if tensor.is_cuda), None)
    if device is None:
        return [tensor.cpu() for tensor in tensors]
    copies = [torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True) for tensor in tensors]
    for copy, tensor in zip(copies, tensors):
        copy.copy_(tensor, non_blocking=True)
    torch.cuda.current_stream(device).synchronize()
    return copies


@contextmanager
def exact_products():
    """float32 products of float32's own precision meanwhile: TF32 keeps 10 bits, of which the sweeps would see."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
