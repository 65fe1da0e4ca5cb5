"""Banks of several kinds whose products are taken at once, see `ops.together`."""

from __future__ import annotations

from collections.abc import Sequence

from ..ops import Together
from .components import ComponentBank
from .kind import PartBank
from .sample import SamplePartBank


def together(banks: Sequence[PartBank]) -> Together | None:
    """The products of these banks of one matrix in one call, None where they have none: other kinds, other devices."""
    components = next((one.bank for one in banks if isinstance(one, ComponentBank)), None)
    samples = next((one.bank for one in banks if isinstance(one, SamplePartBank)), None)
    known = sum(one is not None for one in (components, samples))
    return (
        Together(components, samples) if banks and known == len(banks) and Together.suits(components, samples) else None
    )
