"""Products with packed low-rank factors.  Knows nothing of models, files or task names; needs no GPU."""

from . import parts
from .bank import Bank
from .layout import PackedFactors, pack, unpack
from .ops import (
    EmbeddingParts,
    add_dense_samples,
    add_embedding,
    add_sampled_rows,
    add_samples,
    delta_embedding,
    delta_linear,
    linear,
    reconstruct,
)
from .routing import Routing, add_rows
from .sample_bank import SampleBank
from .samples import Samples

__all__ = [
    "Bank",
    "EmbeddingParts",
    "PackedFactors",
    "Routing",
    "SampleBank",
    "Samples",
    "add_dense_samples",
    "add_embedding",
    "add_rows",
    "add_sampled_rows",
    "add_samples",
    "delta_embedding",
    "delta_linear",
    "linear",
    "pack",
    "parts",
    "reconstruct",
    "unpack",
]
