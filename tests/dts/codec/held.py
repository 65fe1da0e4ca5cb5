"""What is stored of one matrix, in memory."""

from torch import Tensor

from dts.codec.parts.kind import Load


class Held(Load):
    """tensors: by their suffixes."""

    def __init__(self, tensors: dict[str, Tensor]):
        self.tensors = tensors

    def __call__(self, suffix: str) -> Tensor | None:
        return self.tensors.get(suffix)
