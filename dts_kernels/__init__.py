"""Products with packed low-rank factors.  Knows nothing of models, files or task names; needs no GPU."""

from .bank import Bank, Routing
from .layout import PackedFactors, pack, unpack
from .ops import EmbeddingParts, add_embedding, add_rows, delta_embedding, delta_linear, linear, reconstruct

__all__ = [
    "Bank", "EmbeddingParts", "PackedFactors", "Routing", "add_embedding", "add_rows", "delta_embedding",
    "delta_linear", "linear", "pack", "reconstruct", "unpack",
]  # fmt: skip
