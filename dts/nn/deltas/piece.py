"""What one entry of an adapter changes of one parameter."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, cast

from torch import Tensor

from dts.codec.factors import Factors
from dts.codec.shards import Shard
from dts.nn.deltas.exact import Exact
from dts_kernels.rounded import RoundedVector


@dataclass
class Piece:
    """What one entry of an adapter changes of one parameter.

    kind: "factors" (data: `Factors`), "shard" (data: `Shard`, what one process has of factors), "raw" (a delta),
        "value" (a whole tensor), "added" (rows beyond the base's), "exact" (data: `Exact`);  a raw vector may be one in
        few bits
    expert: index into a parameter [E, m, n];  row: where it starts, for a part of a fused matrix
    cuts: what was cut of it so far, for modules that share a parameter
    """

    kind: Literal["factors", "shard", "raw", "value", "added", "exact"]
    data: Factors | Shard | Tensor | RoundedVector | Exact
    expert: int | None = None
    row: int | None = None
    cuts: dict[Any, Piece | None] = field(default_factory=dict, repr=False, compare=False)

    @property
    def factors(self) -> Factors:
        """The data of a piece of factors."""
        return cast(Factors, self.data)

    @property
    def exact(self) -> Exact:
        """The data of a piece that is exact."""
        return cast(Exact, self.data)

    @property
    def shard(self) -> Shard:
        """The data of a piece that was cut out of factors."""
        return cast(Shard, self.data)

    @property
    def tensor(self) -> Tensor:
        """The data of any other piece."""
        return self.data.values() if isinstance(self.data, RoundedVector) else cast(Tensor, self.data)
