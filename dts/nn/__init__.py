"""The run-time: layers and models that run many tasks straight from packed factors."""

from dts.nn.attention import DTSMultiheadAttention
from dts.nn.conv import DTSConv2d
from dts.nn.embedding import DTSEmbedding
from dts.nn.linear import DTSConv1D, DTSLinear
from dts.nn.model import DTSModel
from dts.nn.norm import DTSLayerNorm, DTSNorm
from dts.nn.owner import Owner
from dts.nn.routing import BASE

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
