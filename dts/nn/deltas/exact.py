"""One task's values of a tensor, or of a part of one, bit for bit."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dts.codec.exact import bits

INDEX = 4  # bytes of an element's number


def is_sparse(changed: int, elements: int, itemsize: int) -> bool:
    """Do the elements that changed, with their numbers, take less memory than all of them?"""
    return elements < 1 << 31 and changed * (INDEX + itemsize) < elements * itemsize


@dataclass(frozen=True)
class Exact:
    """values: [changed], of the fine-tune's dtype, at ``index`` (int32 [changed], ascending) of the flat tensor; of the
    tensor's shape where there is no index.  Which of the two follows from the memory they take (`is_sparse`).

    expert, row: as of a `Piece`.
    """

    shape: tuple[int, ...]
    values: Tensor
    index: Tensor | None = None
    expert: int | None = None
    row: int | None = None

    @classmethod
    def of(cls, value: Tensor, base: Tensor, expert: int | None = None, row: int | None = None) -> Exact:
        """value: the fine-tune's;  base: the base's in its dtype, of the same shape."""
        changed = torch.from_numpy((bits(value) != bits(base)).nonzero()[0])
        if not is_sparse(len(changed), value.numel(), value.dtype.itemsize):
            return cls(tuple(value.shape), value, None, expert, row)
        flat = value.reshape(-1)[changed.to(value.device)]
        return cls(tuple(value.shape), flat, changed.to(value.device, torch.int32), expert, row)

    def held(self) -> list[Tensor]:
        return [self.values] if self.index is None else [self.values, self.index]

    def to(self, device: torch.device | str) -> Exact:
        index = None if self.index is None else self.index.to(device)
        return replace(self, values=self.values.to(device), index=index)

    @property
    def whole(self) -> bool:
        """Is it of a whole parameter?"""
        return self.expert is None and self.row is None

    def written(self, base: Tensor) -> Tensor:
        """The tensor with the task's values in the place of the base's, in the base's dtype; not to be written into."""
        if self.whole and self.index is None:
            return self.values.to(base.dtype)
        result = base.detach().clone()
        part = result if self.expert is None else result[self.expert]
        if self.row is not None:
            part = part[self.row : self.row + self.shape[0]]
        if self.index is None:
            part.copy_(self.values)
        else:
            part.view(-1)[self.index.long()] = self.values.to(base.dtype)
        return result
