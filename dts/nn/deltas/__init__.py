"""All tasks' deltas of one parameter, in the forms an adapter stores them."""

from dts.nn.deltas.exact import Exact
from dts.nn.deltas.matrix import MatrixDelta
from dts.nn.deltas.packed import Block, Packed
from dts.nn.deltas.parameter import ParameterDelta
from dts.nn.deltas.piece import Piece
from dts.nn.deltas.table import Table

__all__ = ["Block", "Exact", "MatrixDelta", "Packed", "ParameterDelta", "Piece", "Table"]
