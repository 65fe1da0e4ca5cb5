"""One base model, many fine-tunes, each kept as a 2-bit low-rank difference (DTS, arXiv 2512.01461).

Every public name is reached as ``dts.<name>`` and imported on first use (PEP 562), so that ``import dts``
costs next to nothing and pulls in neither transformers nor triton.
"""

import importlib
from typing import TYPE_CHECKING, Any

from dts.services import provide

if TYPE_CHECKING:  # what callers' type checkers see of the names that are imported on first use
    from dts import adapter, checkpoint, codec, exports, integrations, merge, metrics, nn, plan, unseen
    from dts.adapter import Adapter, AdapterError, BudgetError
    from dts.adapter.compress import compress
    from dts.checkpoint import Checkpoint, CheckpointError, Mismatch, open_checkpoint
    from dts.codec import Factors, Part, Unencodable, compress_tensor
    from dts.nn import (
        BASE,
        DTSConv1D,
        DTSConv2d,
        DTSEmbedding,
        DTSLayerNorm,
        DTSLinear,
        DTSModel,
        DTSMultiheadAttention,
        DTSNorm,
    )

__version__ = "0.1.0"

_MODULES = ("adapter", "checkpoint", "codec", "exports", "integrations", "merge", "metrics", "nn", "plan", "unseen")

_NAMES = {
    "dts.codec": ("Factors", "Part", "Unencodable", "compress_tensor"),
    "dts.checkpoint": ("Checkpoint", "CheckpointError", "Mismatch", "open_checkpoint"),
    "dts.adapter": ("Adapter", "AdapterError", "BudgetError", "compress"),
    "dts.nn": (
        "BASE",
        "DTSConv1D",
        "DTSConv2d",
        "DTSEmbedding",
        "DTSLayerNorm",
        "DTSLinear",
        "DTSModel",
        "DTSMultiheadAttention",
        "DTSNorm",
    ),
}
_MODULE_OF = {name: module for module, names in _NAMES.items() for name in names}

__all__ = sorted([*_MODULE_OF, *_MODULES])

# what the run-time asks for by name, since it is in rooms above: see `dts.services`
provide("library", "dts.integrations.transformers")
provide("within", "dts.plan.within:within")
provide("router", "dts.unseen.likelihood:task_router")


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"dts.{name}")
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'dts' has no attribute {name!r}")
    value = getattr(importlib.import_module(_MODULE_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
