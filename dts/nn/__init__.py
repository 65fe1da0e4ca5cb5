"""The run-time: layers and models that run many tasks straight from packed factors."""

from dts.nn.layers import (
    DTSConv1D,
    DTSConv2d,
    DTSEmbedding,
    DTSLayerNorm,
    DTSLinear,
    DTSMultiheadAttention,
    DTSNorm,
    Owner,
)
from dts.nn.model import DTSModel
from dts.nn.selection import BASE

__all__ = [
    "BASE",
    "DTSConv1D",
    "DTSConv2d",
    "DTSEmbedding",
    "DTSLayerNorm",
    "DTSLinear",
    "DTSModel",
    "DTSMultiheadAttention",
    "DTSNorm",
    "Owner",
]
