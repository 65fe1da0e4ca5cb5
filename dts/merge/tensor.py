"""What a merging method may know about a tensor besides its values."""

import re
import zlib
from dataclasses import dataclass, field

import torch

from dts.shapes import is_stack

# a lookup, or a table of decays, has no input to multiply: its singular vectors mean nothing to a spectral method
_LOOKUP = re.compile(r"embed|wte|wpe|position_bias|\bshared\b|relative_attention_bias|A_log", re.IGNORECASE)


@dataclass(frozen=True)
class TensorInfo:
    """name: the base's; seed: of the whole merge; prepared: what the method's ``prepare`` returned."""

    name: str
    seed: int = 0
    prepared: dict = field(default_factory=dict)

    def generator(self, model: int) -> torch.Generator:
        """Random numbers of one model's tensor, whatever the order in which tensors are merged."""
        mixed = zlib.crc32(f"{self.seed}/{model}/{self.name}".encode())
        return torch.Generator().manual_seed(mixed)

    def matrices(self, shape) -> bool:
        """Whether a tensor of this shape is a matrix, or a stack of experts, that multiplies inputs."""
        if _LOOKUP.search(self.name) or self.name.endswith("bias") or 1 in shape[-2:]:
            return False
        return len(shape) == 2 or shape[:1] != (1,) and is_stack(self.name, tuple(shape))


def each_matrix(function, deltas, tensor: TensorInfo):
    """function(deltas [N, m, n]) -> [m, n] over matrices and experts [N, E, m, n]; the mean for any other tensor.

    The mean is what the spectral papers do with biases, norms and convolutions.
    """
    if not tensor.matrices(deltas.shape[1:]):
        return deltas.mean(0)
    if deltas.dim() == 3:
        return function(deltas)
    return torch.stack([function(deltas[:, e]) for e in range(deltas.shape[1])])
