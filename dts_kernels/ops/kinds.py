"""What `replay` and `replay_rows` remember of calls: some kinds, as long as what they were made of is there."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ..gpu import launch

KINDS = 16  # of calls that are kept
_any_autocast = torch._C._is_any_autocast_enabled
Recorded = TypeVar("Recorded")


def remembered(before: list[Recorded], made: Recorded, lasts: Callable[[Recorded], bool]) -> list[Recorded]:
    """Those that last and one more, in a new list: others may be reading the one before."""
    kept = [one for one in before if lasts(one)]
    return [*kept, made] if len(kept) < KINDS else [made]


def stream_of(card: int, table: Tensor | None, version: int | None) -> int | None:
    """The stream on which a call that is `alike` another may be launched as that was; None where it may not.

    table, version: of contents that were looked at, if somebody counts how often they change.
    """
    if version is not None and table is not None and table._version != version:
        return None
    if _any_autocast() or forward_ad._current_level >= 0:
        return None
    return launch.launcher.stream(card)
