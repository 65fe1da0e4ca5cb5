"""One program of a base and many tasks, whose routing is an input, for run-times without this package."""

from dts.exports.program.figures import Figures, measured
from dts.exports.program.load import LoadedProgram, load_program
from dts.exports.program.manifest import Manifest
from dts.exports.program.trace import Program, torch_program
from dts.exports.program.write import check_out, write_program

__all__ = [
    "Figures",
    "LoadedProgram",
    "Manifest",
    "Program",
    "check_out",
    "load_program",
    "measured",
    "torch_program",
    "write_program",
]
