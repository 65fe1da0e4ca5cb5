"""The kinds of layers that run tasks straight from packed factors, a file each.

A new kind is a file like these with a `Layer` in it, its `register` line, and its name below (or, outside of this
package, an import of that file before tasks are loaded).
"""

from dts.nn.layers.attention import DTSMultiheadAttention
from dts.nn.layers.choose import layer_class
from dts.nn.layers.conv import DTSConv2d
from dts.nn.layers.embedding import DTSEmbedding
from dts.nn.layers.layer import Layer, adopt, base_class, device_of, release, standalone
from dts.nn.layers.layer_deltas import REPEATED, SHARED, UNROUTABLE, LayerDeltas
from dts.nn.layers.linear import DTSConv1D, DTSLinear, LinearForward
from dts.nn.layers.norm import DTSLayerNorm, DTSNorm
from dts.nn.layers.owner import Owner
from dts.nn.layers.patched import Patched
from dts.nn.layers.quantised import DTSQuantisedConv1D, DTSQuantisedEmbedding, DTSQuantisedLinear
from dts.nn.layers.registry import kind_of, known_kinds, read_by, register

__all__ = [
    "REPEATED",
    "SHARED",
    "UNROUTABLE",
    "DTSConv1D",
    "DTSConv2d",
    "DTSEmbedding",
    "DTSLayerNorm",
    "DTSLinear",
    "DTSMultiheadAttention",
    "DTSNorm",
    "DTSQuantisedConv1D",
    "DTSQuantisedEmbedding",
    "DTSQuantisedLinear",
    "Layer",
    "LayerDeltas",
    "LinearForward",
    "Owner",
    "Patched",
    "adopt",
    "base_class",
    "device_of",
    "kind_of",
    "known_kinds",
    "layer_class",
    "read_by",
    "register",
    "release",
    "standalone",
]
