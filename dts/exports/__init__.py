"""Adapters in the formats of other libraries, and theirs as adapters; programs of a base and many tasks for other
run-times.  What is lost on the way is always a figure."""

from dts.exports.bitdelta import import_bitdelta
from dts.exports.from_lora import import_lora
from dts.exports.gguf_lora import export_gguf_lora
from dts.exports.lora import export_lora
from dts.exports.program import LoadedProgram, Manifest, Program, load_program, torch_program, write_program
from dts.exports.report import Export, Exported, NotExact
from dts.exports.sparse import import_sparse

__all__ = [
    "Export",
    "Exported",
    "LoadedProgram",
    "Manifest",
    "NotExact",
    "Program",
    "export_gguf_lora",
    "export_lora",
    "import_bitdelta",
    "import_lora",
    "import_sparse",
    "load_program",
    "torch_program",
    "write_program",
]
