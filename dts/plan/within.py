"""A model with its tasks within a limit, as it was planned."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dts.adapter.digests import config_digest
from dts.adapter.text import as_dtype
from dts.nn.adapters import Given
from dts.nn.shelf import Source
from dts.plan.plan import Memory, planned
from dts.plan.process import steady

if TYPE_CHECKING:
    from dts.nn import DTSModel

OWN = ("batch", "length", "device", "pin", "prefix")  # options of a plan; all others are transformers'


def within(
    cls: type[DTSModel], path: str | Path, adapters: Mapping[str, Given], memory: Memory, **options: Any
) -> DTSModel:
    """`DTSModel.from_pretrained` with ``memory=``; prints the plan on stderr before anything is loaded.

    Raises ValueError for a base that is to be split over processes.
    """
    split = [key for key in ("distributed_config", "tp_plan", "tp_size", "device_mesh") if options.get(key) is not None]
    if split:
        raise ValueError(
            f"memory= plans a base in one process, and {', '.join(split)} splits it over several: leave one of them out"
        )
    made, about = planned(path, adapters, memory, **options)
    print(made, file=sys.stderr)
    steady()
    own = {key: options.pop(key) for key in OWN if key in options}
    model = cls._of_base(path, list(about.values()), **options | {"dtype": as_dtype(made.dtype)})
    if made.device != "cpu":
        model.to(made.device)
        model._state.to(made.device)  # which layers would move with them, but there are none before the first task
    sizes = {row.what: row.nbytes for row in made.rows if row.task}
    sources = {
        name: Source(adapter.folder, sizes[name], own.get("prefix"), digest=config_digest(adapter.config))
        for name, adapter in about.items()
        if adapter.folder is not None
    }
    model.keep_within(made.room, sources, made.resident, own.get("pin", ()))
    model.plan = made
    return model
