"""What one entry of an adapter changes of one parameter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, cast

from torch import Tensor

from dts.codec.factors import Factors
from dts.nn.deltas.exact import Exact


@dataclass
class Piece:
    """What one entry of an adapter changes of one parameter.

    kind: "factors" (data: `Factors`), "raw" (a delta), "value" (a whole tensor), "added" (rows beyond the base's),
    "exact" (data: `Exact`)
    expert: index into a parameter [E, m, n];  row: where it starts, for a part of a fused matrix
    """

    kind: Literal["factors", "raw", "value", "added", "exact"]
    data: Factors | Tensor | Exact
    expert: int | None = None
    row: int | None = None

    @property
    def factors(self) -> Factors:
        """The data of a piece of factors."""
        return cast(Factors, self.data)

    @property
    def exact(self) -> Exact:
        """The data of a piece that is exact."""
        return cast(Exact, self.data)

    @property
    def tensor(self) -> Tensor:
        """The data of any other piece."""
        return cast(Tensor, self.data)
