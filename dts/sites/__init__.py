"""Where the tensors of a checkpoint are in a model in memory.  Imports no other room: all of them may ask."""

from dts.sites.distributed import is_distributed, local, whole
from dts.sites.quantised import dequantised, dequantised_dtype, has_codes, is_quantised, numbers, was_transposed
from dts.sites.resolve import Target, Unchanged, resolve
from dts.sites.site import Site, parameter_shape, raw, raw_or_none, sites, walked

__all__ = [
    "Site",
    "Target",
    "Unchanged",
    "dequantised",
    "dequantised_dtype",
    "has_codes",
    "is_distributed",
    "is_quantised",
    "local",
    "numbers",
    "parameter_shape",
    "raw",
    "raw_or_none",
    "resolve",
    "sites",
    "walked",
    "was_transposed",
    "whole",
]
