"""Banks of several kinds whose products are taken at once, see `ops.together` and `ops.replay`."""

from __future__ import annotations

from collections.abc import Sequence

from ..bank import Bank
from ..ops import Replay, Together
from ..sample_bank import SampleBank
from .components import ComponentBank
from .kind import PartBank
from .sample import SamplePartBank


def together(banks: Sequence[PartBank]) -> Together | None:
    """The products of these banks of one matrix in one call, None where they have none: other kinds, other devices."""
    known = _known(banks)
    return None if known is None or not Together.suits(*known) else Together(*known)


def replay(banks: Sequence[PartBank]) -> Replay | None:
    """The same on a GPU, of products that were made before."""
    known = _known(banks)
    return None if known is None or not Replay.suits(*known) else Replay(*known)


def _known(banks: Sequence[PartBank]) -> tuple[Bank | None, SampleBank | None] | None:
    """Components and samples; None without any, and where there are others."""
    components = next((one.bank for one in banks if isinstance(one, ComponentBank)), None)
    samples = next((one.bank for one in banks if isinstance(one, SamplePartBank)), None)
    known = sum(one is not None for one in (components, samples))
    return (components, samples) if banks and known == len(banks) else None
