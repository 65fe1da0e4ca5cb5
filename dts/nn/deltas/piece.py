"""What one entry of an adapter changes of one parameter."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from dts.codec.factors import Factors


@dataclass
class Piece:
    """What one entry of an adapter changes of one parameter.

    kind: "factors" (data: `Factors`), "raw" (a delta), "value" (a whole tensor), "added" (rows beyond the base's)
    expert: index into a parameter [E, m, n];  row: where it starts, for a part of a fused matrix
    """

    kind: str
    data: Factors | Tensor
    expert: int | None = None
    row: int | None = None
