"""Models whose parameters each forward gathers (FSDP2), and what is refused of parallel models."""

from __future__ import annotations

import sys
from typing import Any

from torch import nn

from dts.sites import is_distributed


def gathered(model: nn.Module) -> set[int]:
    """Ids of the modules under ``fully_shard``, whose parameters are whole whenever their forward runs.

    Raises ValueError for what no task can be loaded into.
    """
    fsdp: Any = sys.modules.get("torch.distributed.fsdp")
    if fsdp is None:
        return set()
    if any(isinstance(module, fsdp.FullyShardedDataParallel) for module in model.modules()):
        raise ValueError(
            "the model is wrapped in FullyShardedDataParallel, which makes one flat tensor of its parameters: wrap it "
            "with torch.distributed.fsdp.fully_shard, which keeps them"
        )
    found = [inner for module in model.modules() if isinstance(module, fsdp.FSDPModule) for inner in module.modules()]
    for module in found:
        for parameter in module._parameters.values():
            _refuse_both(parameter)
    return {id(module) for module in found}


def _refuse_both(parameter: Any) -> None:
    """Raises ValueError for a parameter that is split and sharded; shards that are replicated (HSDP) may be."""
    if is_distributed(parameter) and any(not place.is_replicate() for place in parameter.placements[:-1]):
        raise ValueError(
            f"the model is fully sharded and tensor-parallel at once (placements {parameter.placements}): tasks run on "
            f"either of them"
        )


def refuse_parallel(model: nn.Module, what: str) -> None:
    """Raises ValueError where parameters lie on several processes and something needs them whole."""
    name = next((name for name, p in model.named_parameters() if is_distributed(p)), None)
    if name is not None:
        raise ValueError(
            f"{what} needs whole weights, and {name} lies on several processes: do it before the model is "
            f"parallelised, or with dts apply, which needs one process"
        )
