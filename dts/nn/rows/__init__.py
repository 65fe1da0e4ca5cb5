"""Where the rows of a batch are in what each layer is given."""

from dts.nn.rows.axes import COUPLED, RowAxes
from dts.nn.rows.find import MORE, find_rows, shared
from dts.nn.rows.seen import Inputs

__all__ = ["COUPLED", "MORE", "Inputs", "RowAxes", "find_rows", "shared"]
