"""Products with packed low-rank factors.  Knows nothing of models, files or task names; needs no GPU."""

from .bank import Bank, Routing
from .layout import PackedFactors, pack, unpack
from .ops import EmbeddingParts, add_embedding, add_rows, delta_embedding, delta_linear, linear, reconstruct
from .sample_bank import SampleBank
from .sample_ops import add_dense_samples, add_sampled_rows, add_samples
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
    "reconstruct",
    "unpack",
]
