"""What adapters may take of memory where nobody says it."""

from __future__ import annotations

import logging
from collections.abc import Collection

import torch

from dts.plan.available import available
from dts.serve.catalogue import Catalogue
from dts.serve.refused import Refused
from dts.sizes import bytes_text

log = logging.getLogger("dts.serve")
SHARE = 2  # adapters have one part in so many of what is free beside the base; caches and activations the rest


def default_limit(catalogue: Catalogue, pinned: Collection[str], device: torch.device, to_come: int) -> int | None:
    """Bytes: half of what is free now, as much as ``pinned`` and the largest of the others take at least.

    to_come: bytes of the base that count as free yet, as its pages are not all read.  None where the system does not
    say how much is free.
    """
    free = available(device)
    if free is None:
        log.warning("adapters stay in memory once asked for, as this system does not say what is free: --memory is it")
        return None
    sizes = dict[str, int]()
    for name in catalogue.names():
        try:
            sizes[name] = catalogue.size_of(name)
        except Refused:  # whoever asks for it is told
            continue
    least = sum(sizes.pop(name, 0) for name in pinned) + max(sizes.values(), default=0)
    limit = max((free - to_come) // SHARE, least)
    log.info("adapters: at most %s of memory, half of what is free (--memory says otherwise)", bytes_text(limit))
    return limit
