"""Products with what a compressed fine-tune stores of a matrix.  Knows nothing of models, files or task names; needs no
GPU.

From the numbers up, each room knowing only those above it:

    layout, samples, reference    what is stored, and plain PyTorch that says what it means: the truth of every test
    routing, operands, paths      what a product is given, and the implementations by name
    dispatch                      which path computes a product
    planar, contents, check       kernel words; whether what an op is given is right, before C or Triton sees a pointer
    cpu, gpu                      C and Triton, and the rules by which their backend takes a product
    bank, sample_bank             all loaded tasks of one layer, as the ops and C take them
    backends                      what each of them has of every op
    ops                           the public functions, as torch.library ops
    parts                         kinds of parts of a matrix: what layers use, all kinds alike
"""

from . import parts
from .bank import Bank
from .embedding_parts import EmbeddingParts
from .layout import PackedFactors, pack, unpack
from .ops import (
    add_dense_samples,
    add_embedding,
    add_sampled_rows,
    add_samples,
    delta_embedding,
    delta_linear,
    linear,
    reconstruct,
    start_samples,
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
    "start_samples",
    "unpack",
]
