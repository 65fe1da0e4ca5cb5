"""Is this the base an adapter was made for?  Cheap enough to ask at every load."""

import hashlib

import torch
from torch import Tensor

from dts.checkpoint.checkpoint import Checkpoint
from dts.checkpoint.safetensors_file import NAMES, tensor_bytes

SAMPLES = 1024  # elements of a tensor that are read: touches at most 4 MiB of a mapped file


def sampled_digest(tensor: Tensor) -> str:
    """8 hex digits over ``SAMPLES`` elements spread evenly from the first to the last."""
    flat = tensor.reshape(-1)
    if flat.dtype.itemsize == 1:
        flat = flat.view(torch.uint8)  # 8-bit floats cannot be indexed
    if flat.numel() > SAMPLES:
        flat = flat[torch.arange(SAMPLES) * (flat.numel() - 1) // (SAMPLES - 1)]
    return hashlib.sha256(tensor_bytes(flat)).hexdigest()[:8]


def digests(checkpoint: Checkpoint) -> dict[str, str]:
    """`sampled_digest` of every tensor, tied ones once."""
    found = {}
    for name in sorted(checkpoint.names):
        if name not in checkpoint.tied:
            found[name] = sampled_digest(checkpoint.load(name))
            checkpoint.release(name)
    return found


def fingerprint(checkpoint: Checkpoint, sampled: dict[str, str] | None = None) -> str:
    """32 hex digits over the names, shapes, dtypes and sampled elements of every tensor, tied ones once.

    sampled: what `digests` gave, if it is at hand.
    """
    total = hashlib.sha256()
    for name, digest in (digests(checkpoint) if sampled is None else sampled).items():
        shape = ",".join(map(str, checkpoint.shape(name)))
        total.update(f"{name} {shape} {NAMES[checkpoint.dtype(name)]} {digest}\n".encode())
    return total.hexdigest()[:32]
