"""What one entry of an adapter changes of one parameter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, cast

from torch import Tensor

from dts.codec.factors import Factors


@dataclass
class Piece:
    """What one entry of an adapter changes of one parameter.

    kind: "factors" (data: `Factors`), "raw" (a delta), "value" (a whole tensor), "added" (rows beyond the base's)
    expert: index into a parameter [E, m, n];  row: where it starts, for a part of a fused matrix
    """

    kind: Literal["factors", "raw", "value", "added"]
    data: Factors | Tensor
    expert: int | None = None
    row: int | None = None

    @property
    def factors(self) -> Factors:
        """The data of a piece of factors."""
        return cast(Factors, self.data)

    @property
    def tensor(self) -> Tensor:
        """The data of any other piece."""
        return cast(Tensor, self.data)
