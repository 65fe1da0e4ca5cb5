"""One base model, many fine-tunes, each kept as a 2-bit low-rank difference (DTS, arXiv 2512.01461).

Every public name is reached as ``dts.<name>`` and imported on first use (PEP 562), so that ``import dts``
costs next to nothing and pulls in neither transformers nor triton.
"""

import importlib
from typing import TYPE_CHECKING, Any

from dts.services import provide

if TYPE_CHECKING:  # the names below, for type checkers and editors; of two things named compress, the function
    from dts.adapter import Adapter as Adapter
    from dts.adapter import AdapterError as AdapterError
    from dts.adapter import BudgetError as BudgetError
    from dts.adapter.compress import compress as compress
    from dts.checkpoint import Checkpoint as Checkpoint
    from dts.checkpoint import CheckpointError as CheckpointError
    from dts.checkpoint import Mismatch as Mismatch
    from dts.checkpoint import open_checkpoint as open_checkpoint
    from dts.codec import Factors as Factors
    from dts.codec import Part as Part
    from dts.codec import Unencodable as Unencodable
    from dts.codec import compress_tensor as compress_tensor
    from dts.nn import BASE as BASE
    from dts.nn import DTSConv1D as DTSConv1D
    from dts.nn import DTSConv2d as DTSConv2d
    from dts.nn import DTSEmbedding as DTSEmbedding
    from dts.nn import DTSLayerNorm as DTSLayerNorm
    from dts.nn import DTSLinear as DTSLinear
    from dts.nn import DTSModel as DTSModel
    from dts.nn import DTSMultiheadAttention as DTSMultiheadAttention
    from dts.nn import DTSNorm as DTSNorm

__version__ = "0.1.0"

_MODULES = ("adapter", "checkpoint", "codec", "integrations", "merge", "metrics", "nn", "unseen")

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
# what the run-time asks for by name, since it is in rooms above: see `dts.services`
provide("library", "dts.integrations.transformers")
provide("router", "dts.unseen.router:calibrated_router")

_MODULE_OF = {name: module for module, names in _NAMES.items() for name in names}

__all__ = sorted([*_MODULE_OF, *_MODULES])


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
