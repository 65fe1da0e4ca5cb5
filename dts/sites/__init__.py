"""Where the tensors of a checkpoint are in a model in memory.  Imports no other room: all of them may ask."""

from dts.sites.resolve import Target, resolve
from dts.sites.site import Site, parameter_shape, raw, raw_or_none, sites

__all__ = ["Site", "Target", "parameter_shape", "raw", "raw_or_none", "resolve", "sites"]
