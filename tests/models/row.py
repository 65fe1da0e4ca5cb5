"""A row of the table of models: how to build a tiny model of a family, and what to give it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

Batch = dict[str, Any]
Maker = Callable[[Any, int], Batch]  # (model, rows) -> keyword inputs


@dataclass(frozen=True)
class Row:
    """One architecture.

    name: of the family, as its library calls it;  section: of the page;  kind: the class;  make: a tiny model of it;
    inputs, prompt: so many rows for a call, and for ``generate`` (None: it does not generate);
    outputs: names of those that are compared, by default all that have a row for each of the batch;
    fails: why it does not work, if that is known: the test then expects it to fail;  library: that it is from.
    """

    name: str
    section: str
    kind: str
    make: Callable[[], nn.Module]
    inputs: Maker
    prompt: Maker | None = None
    outputs: tuple[str, ...] = ()
    fails: str = ""
    library: str = "transformers"

    def compared(self, found: Mapping[str, Tensor], rows: int) -> list[str]:
        """Names of the outputs that are compared."""
        if self.outputs:
            return list(self.outputs)
        return [name for name, t in found.items() if t.is_floating_point() and t.dim() and t.shape[0] == rows]
