"""Adapters in the formats of other libraries, and theirs as adapters; what that loses is always a figure."""

from dts.exports.from_lora import import_lora
from dts.exports.gguf_lora import export_gguf_lora
from dts.exports.lora import export_lora
from dts.exports.report import Export, Exported, NotExact

__all__ = ["Export", "Exported", "NotExact", "export_gguf_lora", "export_lora", "import_lora"]
