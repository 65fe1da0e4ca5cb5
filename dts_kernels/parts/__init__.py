"""Kinds of parts at run time: a matrix's delta is the sum of its parts, each of a registered kind.

To add a kind, write a module here with its `Kind` and register it below.  `PlainBank` needs nothing of it but a
function that makes its data dense, so kernels can come later.  Products are added in the order of registration, so
sums keep their bits; the first kind's is fused with the base product where it can be.
"""

from .components import COMPONENTS
from .kind import KINDS, Joined, Kind, PartBank, base_product, kind_of, register, whole_pays
from .plain import PlainBank
from .sample import SAMPLE
from .together import replay, together

register(COMPONENTS)
register(SAMPLE)

__all__ = [
    "KINDS",
    "Joined",
    "Kind",
    "PartBank",
    "PlainBank",
    "base_product",
    "kind_of",
    "register",
    "replay",
    "together",
    "whole_pays",
]
